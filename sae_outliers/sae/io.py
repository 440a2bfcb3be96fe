"""An SAE and its centering as one set of weights, and as one file."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.centering import Affine
from sae_outliers.utils.files import atomic_write


@torch.no_grad()
def folded_encoder(sae: SparseAutoencoder, centering: Affine) -> Tensor:
    """W_enc' = L W_enc, [d_model, n_features]: the encoder directions in the space before the centering."""
    W_enc = sae.W_enc.double()
    return (W_enc if centering.linear is None else centering.linear.double() @ W_enc).float()


@torch.no_grad()
def fold(sae: SparseAutoencoder, centering: Affine) -> SparseAutoencoder:
    """The SAE that does on x what `sae` does on `centering.apply(x)`, its output mapped back by `centering.undo`.

    With z = (x - s) L and x̂ = ẑ L⁺ + s:  W_enc' = L W_enc,  W_dec' = W_dec L⁺,  b_dec' = b_dec L⁺ + s, and
    b_enc' = b_enc + (b_dec L⁺ L - b_dec) W_enc, whose second term is 0 unless L is singular. Thresholds stay. The
    products are formed in float64. Decoder rows keep their unit norm only if L is orthogonal. x is [tokens, d_model].
    """
    result = copy.deepcopy(sae)
    result.W_enc.copy_(folded_encoder(sae, centering))
    result.b_dec.copy_(centering.undo(sae.b_dec))
    if centering.linear is not None and centering.inverse is not None:
        linear, inverse, b_dec = (t.double() for t in (centering.linear, centering.inverse, sae.b_dec))
        result.W_dec.copy_(sae.W_dec.double() @ inverse)
        result.shift_pre_activations(((b_dec @ inverse @ linear - b_dec) @ sae.W_enc.double()).float())
    return result


def save_sae(path: Path, sae: SparseAutoencoder, centering: Affine, described: dict[str, Any]) -> None:
    """Weights and centering as safetensors; `described` (JSON) goes into the file's metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()} | centering.tensors()
    kind = {"class": f"{type(sae).__module__}.{type(sae).__qualname__}", "options": sae.options()}
    with atomic_write(path) as beside:
        save_file(tensors, beside, metadata={"sae": json.dumps(kind), "described": json.dumps(described)})


def load_sae(path: Path) -> tuple[SparseAutoencoder, Affine]:
    """The SAE and the centering that `save_sae` wrote. Raises ValueError for a file without our metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "sae" not in metadata:
        raise ValueError(f"{path} was not written by sae_outliers: its metadata has no entry 'sae'")
    kind = json.loads(metadata["sae"])
    n_features, d_model = tensors["W_dec"].shape
    sae: SparseAutoencoder = get_class(kind["class"])(d_model, n_features, **kind["options"])
    sae.load_state_dict({name: tensors[name] for name in sae.state_dict()})
    return sae, Affine.from_tensors(tensors)
