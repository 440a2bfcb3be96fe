"""Trained SAEs as files of other libraries: one exporter per format, each with the SAE types that it can hold.

The centering is folded into the weights. The preprocessing is not: it is a function of each token, and stays with
whoever reads the files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder, type_name
from sae_outliers.sae.io import fold
from sae_outliers.stats.transforms import Affine
from sae_outliers.utils.files import atomic_write, write_json
from sae_outliers.utils.registry import Registry

Files = dict[str, Any]  # JSON or tensors by file name; the config comes last, so that with it the SAE is complete
WriteFiles = Callable[[SparseAutoencoder, dict[str, Any]], Files]  # of a folded SAE and columns of its run's record

PREPROCESSING_NOTES = {"postln": "LayerNorm without affine over each token (eps 1e-5), times sqrt(d_model)"}


@dataclass(frozen=True)
class Exporter:
    """A format: how its files are made, and the exact types that it holds; a subclass of one may be another function.

    Attributes:
        types: as `sae.base.type_name` names them.
    """

    files: WriteFiles
    types: tuple[str, ...]


EXPORTERS = Registry[Exporter]("format", "sae_outliers.sae.export")


def exporter(format: str, *types: str) -> Callable[[WriteFiles], WriteFiles]:
    """Register the function that makes the files of a format for these SAE types."""

    def add(files: WriteFiles) -> WriteFiles:
        EXPORTERS.register(format)(Exporter(files, types))
        return files

    return add


def export(
    sae: SparseAutoencoder, centering: Affine, described: dict[str, Any], format: str, to: Path
) -> Sequence[str]:
    """Write the SAE, its centering folded in, as the files of `format` into the folder `to`. Return their names.

    `described` are columns of the run's record (JSON), for the files' metadata.

    Raises:
        ValueError: an unknown format, a type of SAE that it cannot hold, a BatchTopK SAE without a threshold, or a
            folder with something in it. Nothing is written.
    """
    chosen, kind = EXPORTERS[format], type_name(type(sae))
    if kind not in chosen.types:
        able = [name for name, other in EXPORTERS.items() if kind in other.types]
        instead = f"use format={' or '.join(able)}" if able else "no other format can"
        raise ValueError(f"format={format} cannot hold a {kind} SAE: {instead}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"to={to} exists and is not an empty folder: name another, or remove it first")
    files = chosen.files(fold(sae, centering), described)
    for name, content in files.items():
        _write(to / name, content)
    return list(files)


def preprocessing_note(described: dict[str, Any]) -> str:
    """Return, in a sentence, the preprocessing that the exported files leave to the caller."""
    name = described.get("preprocessing", "unknown")
    if name == "raw":
        return "The SAE reads and reconstructs activations as the model has them: there is nothing to apply before."
    return (
        "The SAE reads and reconstructs preprocessed activations, and these files do not preprocess: "
        f"before, apply {PREPROCESSING_NOTES.get(name, f'preprocessing={name}')}."
    )


def origin(described: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that says where the SAE comes from and how to read it."""
    return {"reading": preprocessing_note(described), **described}


def inference_threshold(sae: SparseAutoencoder) -> Tensor:
    """Return the scalar threshold of a BatchTopK SAE.

    Raises:
        ValueError: training has not set it; the formats have no other rule for a single token.
    """
    threshold: Tensor = sae.threshold  # type: ignore[assignment]
    if not 0 <= threshold < math.inf:
        kind, value = type_name(type(sae)), threshold.item()
        raise ValueError(f"This {kind} SAE has no threshold ({value}): training sets it, so train it first")
    return threshold


def has_unit_norm(sae: SparseAutoencoder) -> bool:
    """Return whether all decoder rows have, closer than dictionary_learning's loader asks (1e-5)."""
    return bool((sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6)


def _write(path: Path, content: dict[str, Any]) -> None:
    if path.suffix == ".json":
        return write_json(path, content)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}
    with atomic_write(path) as beside:
        torch.save(tensors, beside) if path.suffix == ".pt" else save_file(tensors, beside)
