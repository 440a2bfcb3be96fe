"""The map that a diagnosis recommends, as a module: apply it, undo it, fold it into an SAE's weights, keep it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_outliers.diagnosis.foreign import weights_of
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.io import fold
from sae_outliers.stats.transforms import Affine
from sae_outliers.utils.files import atomic_write

PARTS = ("shift", "linear", "inverse", "scale")


class Centering(nn.Module):
    """z = (x - shift) @ linear * scale as a module with buffers, of tokens x [..., d_model] as they were diagnosed.

    Attributes:
        name: off, mean, geometric_median or whiten.
        preprocessing: what was done to each token before: `raw` (nothing), `postln`, or what an SAE's config declares.
            The module does not repeat it.
        shift: [d_model].  linear, inverse: [d_model, d_model] or None.  scale: a number or None.
    """

    def __init__(self, affine: Affine, name: str, preprocessing: str = "raw") -> None:
        super().__init__()
        self.name, self.preprocessing, self.d_model = name, preprocessing, len(affine.shift)
        for part in PARTS:
            self.register_buffer(part, getattr(affine, part))

    @property
    def affine(self) -> Affine:
        """Return the map itself."""
        return Affine(**{part: getattr(self, part) for part in PARTS})

    def forward(self, x: Tensor) -> Tensor:
        """Return what an SAE is to be given of x [..., d_model]."""
        return self.affine.apply(x)

    def undo(self, z: Tensor) -> Tensor:
        """Return x [..., d_model] of z: what an SAE on centred tokens reconstructs, mapped back."""
        return self.affine.undo(z)

    @torch.no_grad()
    def fold_into(self, sae: nn.Module) -> nn.Module:
        """Return an SAE that does on x what `sae`, trained on centred tokens, does on centering(x).

        One of ours becomes a copy. Of another library's the weights are changed in place, and the same module is
        returned: W_enc [d_model, n_features] or an encoder that is a Linear, W_dec or a decoder likewise, b_enc, and
        b_dec or bias. It subtracts b_dec from its input, unless its `apply_b_dec_to_input` is false.

        Raises:
            ValueError: the widths differ, or its weights are none of these.
        """
        if isinstance(sae, SparseAutoencoder):
            self._check_width(sae.d_model)
            return fold(sae, self.affine)
        weights = weights_of(sae)
        self._check_width(len(weights.b_dec))
        weights.fold(self.affine)
        return sae

    def _check_width(self, d_model: int) -> None:
        if d_model != self.d_model:
            raise ValueError(f"the SAE is for tokens of width {d_model}, but this centering for {self.d_model}")

    def save(self, path: Path | str) -> None:
        """Write it as safetensors, beside and renamed into place."""
        tensors = {name: tensor.contiguous() for name, tensor in self.affine.tensors().items()}
        about = {"kind": "sae_outliers.centering", "name": self.name, "preprocessing": self.preprocessing}
        with atomic_write(Path(path)) as beside:
            save_file(tensors, beside, metadata=about)

    @classmethod
    def load(cls, path: Path | str) -> "Centering":
        """Return the centering that `save` wrote. Raises ValueError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error
        if about.get("kind") != "sae_outliers.centering":
            raise ValueError(f"{path} holds no centering: one is written by d.recommended.centering.save")
        return cls(Affine.from_tensors(tensors), about["name"], about["preprocessing"])

    def extra_repr(self) -> str:
        return f"{self.name}, d_model={self.d_model}, preprocessing={self.preprocessing}"
