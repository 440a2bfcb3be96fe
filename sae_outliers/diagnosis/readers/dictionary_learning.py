"""dictionary_learning: config.json and ae.pt. Its classes differ in the names of their tensors, by which they are told.

Scaling to a mean squared norm of 1 is in the weights that training saves, so tokens go in as they are.
"""

from pathlib import Path

from torch import Tensor

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.readers.base import (
    READERS,
    Reader,
    Tensors,
    config_of,
    filled,
    folder_of,
    holds,
    k_of,
    state_dict_of,
    take,
)
from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder

FILES = ("config.json", "ae.pt")
LINEAR = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T"}
MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T", "b_dec": "decoder_bias", "b_enc": "gate_bias",
         "b_mag": "mag_bias", "r_mag": "r_mag"}  # fmt: skip


def read(place: Path) -> LoadedSae:
    folder = folder_of(place)
    path = folder / FILES[1]
    trainer = config_of(folder / FILES[0]).get("trainer", {})
    name = str(trainer.get("dict_class", ""))
    return LoadedSae(_sae(name, state_dict_of(path), path), f"dictionary_learning {name} in {folder}")


def _sae(name: str, tensors: dict[str, Tensor], path: Path) -> SparseAutoencoder:
    match name:
        case "AutoEncoderTopK":
            weights = take(tensors, LINEAR | {"b_dec": "b_dec"}, path)
            return filled(TopK(*_shape(weights), k=_int(tensors, "k")), weights, path)
        case "BatchTopKSAE" | "MatryoshkaBatchTopKSAE":
            names = LINEAR | {"b_dec": "b_dec"} if name == "BatchTopKSAE" else MATRICES
            weights = take(tensors, names | {"threshold": "threshold"}, path)
            return filled(BatchTopK(*_shape(weights), k=_int(tensors, "k")), weights, path)
        case "JumpReluAutoEncoder":
            weights = take(tensors, MATRICES | {"threshold": "threshold"}, path)
            sae = JumpReLU(*_shape(weights), k=k_of(len(weights["W_dec"])))
            weights["threshold"] = weights["threshold"] / sae.unit
            return filled(sae, weights, path, subtracts_b_dec=False)
        case "GatedAutoEncoder":
            weights = take(tensors, GATED, path)
            return filled(Gated(*_shape(weights), k=k_of(len(weights["W_dec"]))), weights, path)
        case "AutoEncoder" | "AutoEncoderNew":
            is_new = name == "AutoEncoderNew"
            weights = take(tensors, LINEAR | {"b_dec": "decoder.bias" if is_new else "bias"}, path)
            relu = ReLU(*_shape(weights), k=k_of(len(weights["W_dec"])))
            return filled(relu, weights, path, subtracts_b_dec=not is_new)
        case _:
            raise ValueError(f"{path}: dict_class={name or 'none'} is not read: its config.json names no class that is")


def _shape(weights: Tensors) -> tuple[int, int]:
    """Return d_model and n_features."""
    n_features, d_model = weights["W_dec"].shape
    return d_model, n_features


def _int(tensors: Tensors, name: str) -> int:
    return int(tensors[name].item())


READERS.register("dictionary_learning")(Reader(" and ".join(FILES), lambda place: holds(place, *FILES), read))
