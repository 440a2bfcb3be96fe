"""Saving and loading SAEs, and folding a centering into their weights."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers.results.integrity import check_file, damaged
from sae_outliers.sae.base import FORMER_PATHS, SAES, SparseAutoencoder, type_name, type_named
from sae_outliers.stats.transforms import Affine
from sae_outliers.utils.files import atomic_write


@torch.no_grad()
def folded_encoder(sae: SparseAutoencoder, centering: Affine) -> Tensor:
    """Return W_enc' = s L W_enc, [d_model, n_features]: the encoder directions in the space before the centering."""
    W_enc = sae.W_enc.double()
    W_enc = W_enc if centering.linear is None else centering.linear.double() @ W_enc
    return (W_enc if centering.scale is None else centering.scale.double() * W_enc).float()


@torch.no_grad()
def folded_decoder(sae: SparseAutoencoder, centering: Affine) -> Tensor:
    """Return W_dec' = W_dec L⁺ / s, [n_features, d_model]: the decoder directions in the space before the centering."""
    W_dec = sae.W_dec.double()
    W_dec = W_dec if centering.inverse is None else W_dec @ centering.inverse.double()
    return (W_dec if centering.scale is None else W_dec / centering.scale.double()).float()


@torch.no_grad()
def fold(sae: SparseAutoencoder, centering: Affine) -> SparseAutoencoder:
    """Return the SAE that does on x what `sae` does on `centering.apply(x)`, its output mapped back by `undo`.

    With z = (x - c) L s and x̂ = ẑ L⁺ / s + c:  W_enc' = s L W_enc,  W_dec' = W_dec L⁺ / s,  b_dec' = b_dec L⁺ / s + c,
    and b_enc' = b_enc + (b_dec L⁺ L - b_dec) W_enc, whose second term is 0 unless L is singular. Thresholds stay. The
    products are formed in float64. Decoder rows keep their unit norm only if L s is orthogonal. x is [tokens, d_model].
    """
    result = copy.deepcopy(sae)
    result.W_enc.copy_(folded_encoder(sae, centering))
    result.W_dec.copy_(folded_decoder(sae, centering))
    result.b_dec.copy_(centering.undo(sae.b_dec))
    if centering.linear is not None and centering.inverse is not None:
        linear, inverse, b_dec = (t.double() for t in (centering.linear, centering.inverse, sae.b_dec))
        result.shift_pre_activations(((b_dec @ inverse @ linear - b_dec) @ sae.W_enc.double()).float())
    return result


def save_sae(path: Path, sae: SparseAutoencoder, centering: Affine, described: dict[str, Any]) -> None:
    """Write weights and centering as safetensors; `described` (JSON) goes into the file's metadata.

    Raises:
        ValueError: the SAE's class is local to a function, so that no file could name it.
    """
    kind = type_name(type(sae))
    if "<locals>" in kind:
        raise ValueError(f"{kind} could not be loaded from a file: define the class at the top level of a module")
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()} | centering.tensors()
    metadata = {"sae": json.dumps({"type": kind, "options": sae.options()}), "described": json.dumps(described)}
    with atomic_write(path) as beside:
        save_file(tensors, beside, metadata=metadata)


def load_sae(path: Path, own_type: type[SparseAutoencoder] | None = None) -> tuple[SparseAutoencoder, Affine]:
    """Return the SAE and the centering that `save_sae` wrote, in this version or an earlier one.

    A file may name a registered type. A class of your own it may not, for importing runs code: give it as `own_type`.

    Raises:
        ValueError: a file without our metadata, of another type, or other than its run's record says.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(path, error) from error
    if "sae" not in metadata:
        raise ValueError(f"{path} was not written by sae_outliers: its metadata has no entry 'sae'")
    described = json.loads(metadata["sae"])
    name = described["type"] if "type" in described else described["class"]  # "class" was a class path
    if own_type is not None and name == type_name(own_type):
        kind = own_type
    elif name in SAES or name in FORMER_PATHS:
        kind = type_named(name)
    else:
        raise ValueError(
            f"{path} is of the type {name}, which is not one of ours: if you trust it, name it yourself, by "
            f"type={name} or in Python by own_type="
        )
    n_features, d_model = tensors["W_dec"].shape
    sae: SparseAutoencoder = kind(d_model, n_features, **described["options"])
    sae.load_state_dict({name: tensors[name] for name in sae.state_dict()})
    return sae, Affine.from_tensors(tensors)
