"""SAELens v6: cfg.json and sae_weights.safetensors, of SAE.save_model or a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.readers.base import (
    READERS,
    Reader,
    config_of,
    filled,
    folder_of,
    holds,
    k_of,
    safetensors_of,
    take,
)
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.transforms import Affine

FILES = ("cfg.json", "sae_weights.safetensors")
NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
# of a checkpoint of training, beside the others; at its end both are in the weights
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
PREPROCESSINGS = {"none": "raw", "expected_average_only_in": "raw", "layer_norm": "layer_norm",
                  "constant_norm_rescale": "constant_norm_rescale", "covariance_whitening": "raw"}  # fmt: skip


def read(place: Path) -> LoadedSae:
    """Read it. Raises ValueError for an architecture or a normalisation that is not known."""
    folder = folder_of(place)
    cfg, path = config_of(folder / FILES[0]), folder / FILES[1]
    tensors = safetensors_of(path)
    normalisation = cfg.get("normalize_activations") or "none"
    if normalisation not in PREPROCESSINGS:
        raise ValueError(f"{folder / FILES[0]}: normalize_activations={normalisation} is not known")
    sae = _sae(cfg, tensors, path)
    by_expected_norm = normalisation == "expected_average_only_in"
    scale = _scale(folder / SCALER, sae) if by_expected_norm else None
    if normalisation == "covariance_whitening":
        scale = _whitening(folder / WHITENING)
    return LoadedSae(
        sae,
        f"SAELens {architecture(cfg)} SAE in {folder}",
        PREPROCESSINGS[normalisation],
        scale,
        by_expected_norm=by_expected_norm and scale is None,
    )


def architecture(cfg: dict[str, Any]) -> str:
    """Return the architecture; files from before v6 name the activation function."""
    named = cfg.get("architecture") or "standard"
    return "topk" if named == "standard" and cfg.get("activation_fn_str") == "topk" else str(named)


def _sae(cfg: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> SparseAutoencoder:
    d_model, n_features = tensors.get("W_enc", torch.empty(0, 0)).shape
    match architecture(cfg):
        case "topk":
            k = cfg.get("k") or cfg.get("activation_fn_kwargs", {}).get("k")
            sae: SparseAutoencoder = TopK(d_model, n_features, k=int(k))
            names = NAMES
        case "jumprelu":
            sae, names = JumpReLU(d_model, n_features, k=k_of(n_features)), NAMES | {"threshold": "threshold"}
            tensors = tensors | {"threshold": _thresholds(tensors, path) / sae.unit}
        case "gated":
            sae = Gated(d_model, n_features, k=k_of(n_features))
            names = NAMES | {"b_enc": "b_gate", "b_mag": "b_mag", "r_mag": "r_mag"}
        case "standard":
            sae, names = ReLU(d_model, n_features, k=k_of(n_features)), NAMES
        case other:
            raise ValueError(f"{path}: architecture={other} is not read: topk, jumprelu, gated and standard are")
    weights = take(tensors, names, path)
    if cfg.get("rescale_acts_by_decoder_norm"):
        norm = weights["W_dec"].norm(dim=1)
        weights |= {"W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm}
        weights |= {"W_dec": weights["W_dec"] / norm[:, None]}
    return filled(sae, weights, path, bool(cfg.get("apply_b_dec_to_input", True)))


def _thresholds(tensors: dict[str, Tensor], path: Path) -> Tensor:
    return take(tensors, {"threshold": "threshold"}, path)["threshold"]


def _scale(path: Path, sae: SparseAutoencoder) -> Affine | None:
    if not path.is_file():
        return None
    factor = config_of(path).get("scaling_factor")
    return None if factor is None else Affine(torch.zeros_like(sae.b_dec.detach()), scale=torch.tensor(float(factor)))


def _whitening(path: Path) -> Affine:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: with normalize_activations=covariance_whitening the SAE cannot do without"
        )
    found = take(safetensors_of(path), {"shift": "mean", "linear": "matrix", "inverse": "inverse_matrix"}, path)
    return Affine(**found)


READERS.register("saelens")(Reader(" and ".join(FILES), lambda place: holds(place, *FILES), read))
