"""Readers of files with arrays. Nothing is unpickled.

An array is [tokens, d_model], or [n, tokens, d_model] with n documents. Files are memory-mapped or read in pieces, so
that arrays may be larger than memory; only an array in an npz file must fit into it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_outliers.data.reading import reading
from sae_outliers.data.selection import MASKS, ROWS_PER_DOCUMENT, Piece, Selection, as_tensor, select

NO_PICKLES = (
    "only plain arrays of numbers are read, nothing is unpickled: write it as np.save(file, array.astype('float32'))"
)
TENSORS_ONLY = "only tensors are read, nothing is unpickled: write it as torch.save({'acts': tensor}, file)"


@dataclass(frozen=True)
class Array:
    """One array of a file, read by parts.

    Attributes:
        shape: [tokens, d_model] or [n, tokens, d_model].
        part: reads the part at an index of the first dimension, or a slice of it.
        mask: true at the tokens, of the same shape without d_model; None: all rows are tokens.
        where: file and array, for messages.
    """

    shape: Sequence[int]
    part: Callable[[Any], Any]
    where: str
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3):
            raise ValueError(
                f"{self.where} has shape {list(self.shape)}: use [tokens, d_model] or [n, tokens, d_model]"
            )
        if self.mask is not None and list(self.mask.shape) != list(self.shape[:-1]):
            raise ValueError(
                f"{self.where} has shape {list(self.shape)}, but its mask {list(self.mask.shape)} instead of "
                f"{list(self.shape[:-1])}; data.source.mask=none reads without one"
            )

    def indices(self) -> list[Any]:
        """Return the index of each document."""
        if len(self.shape) == 3:
            return list(range(self.shape[0]))
        return [slice(start, start + ROWS_PER_DOCUMENT) for start in range(0, self.shape[0], ROWS_PER_DOCUMENT)]

    def document(self, index: Any) -> Tensor:
        """Return the tokens of a document, without those that the mask excludes."""
        rows = as_tensor(self.part(index), self.where)
        return rows if self.mask is None else rows[torch.from_numpy(np.asarray(self.mask[index]) != 0)]


def array_pieces(file: Path, arrays: Sequence[Array]) -> list[Piece]:
    """Return a piece for each document of the arrays."""

    def piece(array: Array, index: Any) -> Piece:
        def read(_rng: np.random.Generator) -> Iterator[Tensor]:
            with reading(file):
                yield array.document(index)

        return read

    return [piece(array, index) for array in arrays for index in array.indices()]


def read_npy(file: Path, selection: Selection) -> list[Piece]:
    """Read NumPy's file of one array, memory-mapped."""
    return array_pieces(file, [only_array(file, _loaded(file), selection)])


def _loaded(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(f"{file} holds Python objects: {NO_PICKLES}") from error
        raise
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{file} is an npz archive: give it that suffix")
    return array


def only_array(file: Path, array: Any, selection: Selection) -> Array:
    """Return the only array of a file, with the mask of another file if one is named."""
    return Array(array.shape, array.__getitem__, str(file), _mask([], str, selection, file))


def read_npz(file: Path, selection: Selection) -> list[Piece]:
    """Read NumPy's archive: one piece, because each of its arrays is decompressed whole."""

    def read(rng: np.random.Generator) -> Iterator[Tensor]:
        with reading(file), np.load(file, allow_pickle=False) as archive:
            arrays = _named_arrays(file, archive.files, archive.__getitem__, selection)
            documents = [(array, index) for array in arrays for index in array.indices()]
            for i in rng.permutation(len(documents)):
                array, index = documents[i]
                yield array.document(index)

    return [read]


def _named_arrays(file: Path, names: Sequence[str], get: Callable[[str], Any], selection: Selection) -> list[Array]:
    """Return the arrays that the key names; `get` reads one."""
    chosen = select(names, selection, file)
    mask = _mask(names, get, selection, file)
    found = [(name, _without_objects(get, name, file)) for name in chosen]
    return [Array(value.shape, value.__getitem__, f"{file}, {name},", mask) for name, value in found]


def _without_objects(get: Callable[[str], Any], name: str, file: Path) -> Any:
    try:
        value = get(name)
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"{file}, {name}, holds Python objects: {NO_PICKLES}") from error
        raise
    if not hasattr(value, "shape"):
        raise ValueError(f"{file}, {name}, is {type(value).__name__}, not an array")
    return value


def _mask(names: Sequence[str], get: Callable[[str], Any], selection: Selection, file: Path) -> np.ndarray | None:
    """Return the mask that the selection names, or that lies beside the arrays under a usual name."""
    if selection.mask == "none":
        return None
    if selection.mask and selection.mask.endswith(".npy"):
        place = Path(selection.mask).expanduser()
        with reading(place):
            return _loaded(place)
    name = selection.mask or next((name for name in MASKS if name in names), None)
    if name is None:
        return None
    if name not in names:
        raise ValueError(f"{file} contains no mask {name!r}; it contains {', '.join(names) or 'one array'}")
    return np.asarray(get(name))


def read_safetensors(file: Path, selection: Selection) -> list[Piece]:
    """Read the arrays of a safetensors file, a document at a time."""
    from safetensors import safe_open

    def part(name: str) -> Callable[[Any], Tensor]:
        def read(index: Any) -> Tensor:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_slice(name)[index]

        return read

    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        mask = _mask(names, tensors.get_tensor, selection, file)
        shapes = {name: tensors.get_slice(name).get_shape() for name in select(names, selection, file)}
    return array_pieces(file, [Array(shape, part(name), f"{file}, {name},", mask) for name, shape in shapes.items()])


def read_torch(file: Path, selection: Selection) -> list[Piece]:
    """Read what torch.save wrote, a tensor or a list or dict of tensors; nothing is unpickled."""
    with reading(file, TENSORS_ONLY):
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    if isinstance(held, Tensor):
        return array_pieces(file, [only_array(file, held.detach(), selection)])
    if isinstance(held, list | tuple) and all(isinstance(one, Tensor) for one in held):
        return array_pieces(file, [only_array(file, one.detach(), selection) for one in held])
    if not isinstance(held, dict):
        raise ValueError(f"{file} holds {type(held).__name__}: {TENSORS_ONLY}")
    tensors = {str(name): value.detach() for name, value in held.items() if isinstance(value, Tensor)}
    return array_pieces(file, _named_arrays(file, list(tensors), tensors.__getitem__, selection))


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"  # torch maps only what it wrote since 1.6


def read_hdf5(file: Path, selection: Selection) -> list[Piece]:
    """Read the datasets of an HDF5 file, a document at a time."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(f"{file} needs a package that is not installed: pip install h5py") from error

    def part(name: str) -> Callable[[Any], np.ndarray]:
        def read(index: Any) -> np.ndarray:
            with h5py.File(file) as opened:
                return np.asarray(opened[name][index])

        return read

    with h5py.File(file) as opened:
        names: list[str] = []
        opened.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        mask = _mask(names, opened.__getitem__, selection, file)
        shapes = {name: opened[name].shape for name in select(names, selection, file)}
    return array_pieces(file, [Array(shape, part(name), f"{file}, {name},", mask) for name, shape in shapes.items()])
