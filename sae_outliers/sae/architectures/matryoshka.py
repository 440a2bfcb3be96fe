"""Matryoshka SAE (Bussmann et al. 2025): a BatchTopK SAE whose first features must reconstruct on their own."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.base import SAES, StepOutput
from sae_outliers.sae.kernels import Code, decode, with_gradient


@SAES.register("matryoshka")
class Matryoshka(BatchTopK):
    """The loss is the mean over prefixes of the error that the features up to the prefix's end leave.

    `prefixes` are ascending fractions of n_features, the last one 1.

    Raises:
        ValueError: `prefixes` are not.
    """

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        scale: float = 1.0,
        seed: int = 0,
        prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        self.prefixes = [float(fraction) for fraction in prefixes]
        self.ends = [round(fraction * n_features) for fraction in self.prefixes]
        if any(a >= b for a, b in zip([0, *self.ends], self.ends, strict=False)) or self.prefixes[-1:] != [1.0]:
            raise ValueError(f"sae.prefixes={self.prefixes} must be fractions of n_features that ascend to 1")

    def options(self) -> dict[str, Any]:
        return super().options() | {"prefixes": self.prefixes}

    def training_step(self, x: Tensor) -> StepOutput:
        code = with_gradient(self.choose(x), x, self.W_enc, self.b_enc, self.b_dec)
        code = code._replace(values=code.values.relu())
        residual, losses = x - self.b_dec, []
        for start, end in zip([0, *self.ends], self.ends, strict=False):
            residual = residual - decode(_between(code, start, end), self.W_dec)
            losses.append(self.squared_error(residual))
        return StepOutput(sum(losses, x.new_zeros(())) / len(losses), code.fired(self.n_features), residual.detach())


def _between(code: Code, start: int, end: int) -> Code:
    """Return the entries of features start to end."""
    kept = (code.indices >= start) & (code.indices < end)
    offsets = F.pad(kept.cumsum(0), (1, 0))[code.offsets]
    return Code(code.values[kept], code.indices[kept], offsets)
