"""Find out which library wrote an SAE's files, and read them. Nothing is unpickled but plain tensors.

A reader says by the files' names and keys whether they are of its format, so the formats share no order.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.utils.registry import Registry

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reader:
    """A format.

    Attributes:
        files: what its folder holds, in words.
        is_theirs: whether a folder, or a file in it, is of this format.
        read: reads it.
    """

    files: str
    is_theirs: Callable[[Path], bool]
    read: Callable[[Path], LoadedSae]


READERS = Registry[Reader]("sae format", "sae_outliers.diagnosis.readers")


def read_sae(path: Path | str) -> LoadedSae:
    """Return the SAE in a folder, or in a file of it.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is of no format that is known, of several, or damaged, or a pickle of more than tensors.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"sae={path} does not exist: give the folder that holds the SAE's files")
    found = [(name, reader) for name, reader in READERS.items() if reader.is_theirs(place)]
    if not found:
        known = "; ".join(f"{name}: {reader.files}" for name, reader in READERS.items())
        raise ValueError(f"sae={path} is of no format that is known ({known}): {_content(place)}")
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise ValueError(f"sae={path} holds the files of several formats ({names}): name one file")
    return found[0][1].read(place)


def _content(place: Path) -> str:
    if place.is_file():
        return f"a file {place.suffix or 'without an ending'}"
    names = sorted(one.name for one in place.iterdir())
    return f"it holds {', '.join(names[:6]) or 'nothing'}{' ...' if len(names) > 6 else ''}"


def holds(place: Path, *names: str) -> bool:
    """Return whether a folder holds all these files; of a file, the folder that it lies in, and it is one of them."""
    folder = place if place.is_dir() else place.parent
    return all((folder / name).is_file() for name in names) and (place.is_dir() or place.name in names)


def folder_of(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def config_of(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError where it is none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def safetensors_of(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors in float32. Raises ValueError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: as_float(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error


def state_dict_of(path: Path, content: bytes | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file of torch.save, in float32. Of a pickle nothing but tensors is read.

    Raises:
        ValueError: it holds anything else, or is damaged.
    """
    try:
        found = torch.load(path if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is a pickle of more than tensors, or damaged, and loading it could run code: in the library that "
            "wrote it, save its state_dict() with torch.save"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path} is no state_dict of an SAE: it holds more than tensors")
    return {str(name): as_float(tensor) for name, tensor in found.items()}


def as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def take(tensors: Tensors, names: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Return tensors under our names, given theirs. A name that ends in .T stands for the transpose.

    Raises:
        ValueError: one is missing.
    """
    missing = [theirs.removesuffix(".T") for theirs in names.values() if theirs.removesuffix(".T") not in tensors]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: it holds {', '.join(tensors)}")
    return {
        ours: tensors[theirs.removesuffix(".T")].T if theirs.endswith(".T") else tensors[theirs]
        for ours, theirs in names.items()
    }


@torch.no_grad()
def filled(sae: SparseAutoencoder, weights: Tensors, path: Path, subtracts_b_dec: bool = True) -> SparseAutoencoder:
    """Return the SAE with these weights by our names. One that does not subtract b_dec gets it into b_enc.

    Raises:
        ValueError: a shape that does not fit.
    """
    own = dict(sae.named_parameters()) | dict(sae.named_buffers())
    for name, tensor in weights.items():
        if own[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} is {list(tensor.shape)}, but {list(own[name].shape)} is needed")
        own[name].copy_(tensor)
    if not subtracts_b_dec:
        # x W + b = (x - b_dec) W + (b + b_dec W)
        sae.shift_pre_activations((sae.b_dec.double() @ sae.W_enc.double()).float())
    return sae


def k_of(n_features: int, k: int | None = None) -> int:
    """Return k, or for types that select by a threshold the k of the dead-by-TopK measurement."""
    return min(64, n_features) if k is None else k
