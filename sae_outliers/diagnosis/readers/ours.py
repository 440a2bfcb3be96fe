"""Ours: sae.safetensors of a run."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.readers.base import READERS, Reader, folder_of, holds
from sae_outliers.sae.io import load_sae

FILE = "sae.safetensors"


def is_ours(place: Path) -> bool:
    return holds(place, FILE) and "sae" in _metadata(folder_of(place) / FILE)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def read(place: Path) -> LoadedSae:
    path = folder_of(place) / FILE
    sae, centering = load_sae(path)
    described = json.loads(_metadata(path).get("described", "{}"))
    return LoadedSae(sae, f"our {type(sae).__name__} in {path}", described.get("preprocessing"), centering)


READERS.register("sae_outliers")(Reader(f"{FILE} of a run", is_ours, read))
