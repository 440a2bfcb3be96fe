"""EleutherAI's sparsify: cfg.json and sae.safetensors, of SparseCoder.save_to_disk."""

from pathlib import Path

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.readers.base import (
    READERS,
    Reader,
    config_of,
    filled,
    folder_of,
    holds,
    safetensors_of,
    take,
)
from sae_outliers.diagnosis.readers.ours import is_ours
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.topk import TopK

NAMES = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}


def is_sparsifys(place: Path) -> bool:
    return holds(place, "cfg.json", "sae.safetensors") and not is_ours(place)


def read(place: Path) -> LoadedSae:
    """Read it. Raises ValueError for a transcoder, which reconstructs other activations than it reads."""
    folder = folder_of(place)
    cfg, path = config_of(folder / "cfg.json"), folder / "sae.safetensors"
    if cfg.get("transcode") or cfg.get("skip_connection"):
        raise ValueError(
            f"{folder} is a transcoder: only autoencoders, which reconstruct what they read, are diagnosed"
        )
    weights = take(safetensors_of(path), NAMES, path)
    n_features, d_model = weights["W_dec"].shape
    kind = GroupMax if cfg.get("activation", "topk") == "groupmax" else TopK
    sae = filled(kind(d_model, n_features, k=int(cfg["k"])), weights, path)
    return LoadedSae(sae, f"sparsify {cfg.get('activation', 'topk')} SAE in {folder}")


READERS.register("sparsify")(Reader("cfg.json and sae.safetensors", is_sparsifys, read))
