"""Readers of files with activations, by suffix. Nothing is unpickled.

An array is [tokens, d_model], or [n, tokens, d_model] with n documents. Files are memory-mapped or read in pieces, so
that arrays may be larger than memory; only an array in an npz file must fit into it.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_outliers.data.reading import reading

ROWS_PER_DOCUMENT = 1024  # where a file has no documents, only [tokens, d_model]
MASKS = ("mask", "attention_mask")  # names by which a mask beside an array is known
BFLOAT16 = np.dtype("V2")  # what NumPy makes of JAX's bfloat16
NO_PICKLES = (
    "only plain arrays of numbers are read, nothing is unpickled: write it as np.save(file, array.astype('float32'))"
)
TENSORS_ONLY = "only tensors are read, nothing is unpickled: write it as torch.save({'acts': tensor}, file)"

Piece = Callable[[np.random.Generator], Iterator[Tensor]]  # reads adjacent documents, possibly in random order


@dataclass(frozen=True)
class Selection:
    """What to read of a file; the attributes are those of `StoredArrays`."""

    key: str | Sequence[str] | None = None
    mask: str | None = None
    shape: Sequence[int] | None = None
    dtype: str | None = None


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


def as_tensor(values: Any, where: str) -> Tensor:
    """Return a copy, because memory-mapped files must not be written to. Raise ValueError unless it holds floats."""
    if isinstance(values, Tensor):
        if not values.is_floating_point():
            raise ValueError(f"{where} contains {values.dtype}, not floating-point numbers")
        return values.clone()
    if values.dtype.kind == "V" and values.dtype.itemsize == 2 and not values.dtype.names:
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    if values.dtype.kind != "f":
        raise ValueError(f"{where} contains {values.dtype}, not floating-point numbers")
    # torch has no other byte order, and no long double
    kind = np.dtype(np.float64) if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(values, dtype=kind))


def _pieces(file: Path, arrays: Sequence[Array]) -> list[Piece]:
    def piece(array: Array, index: Any) -> Piece:
        def read(_rng: np.random.Generator) -> Iterator[Tensor]:
            with reading(file):
                yield array.document(index)

        return read

    return [piece(array, index) for array in arrays for index in array.indices()]


def _npy(file: Path, selection: Selection) -> list[Piece]:
    return _pieces(file, [_whole(file, _loaded(file), selection)])


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


def _whole(file: Path, array: Any, selection: Selection) -> Array:
    """Return the only array of a file, with the mask of another file if one is named."""
    return Array(array.shape, array.__getitem__, str(file), _mask([], str, selection, file))


def _npz(file: Path, selection: Selection) -> list[Piece]:
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


def _safetensors(file: Path, selection: Selection) -> list[Piece]:
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
    return _pieces(file, [Array(shape, part(name), f"{file}, {name},", mask) for name, shape in shapes.items()])


def _torch(file: Path, selection: Selection) -> list[Piece]:
    with reading(file, TENSORS_ONLY):
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    if isinstance(held, Tensor):
        return _pieces(file, [_whole(file, held.detach(), selection)])
    if isinstance(held, list | tuple) and all(isinstance(one, Tensor) for one in held):
        return _pieces(file, [_whole(file, one.detach(), selection) for one in held])
    if not isinstance(held, dict):
        raise ValueError(f"{file} holds {type(held).__name__}: {TENSORS_ONLY}")
    tensors = {str(name): value.detach() for name, value in held.items() if isinstance(value, Tensor)}
    return _pieces(file, _named_arrays(file, list(tensors), tensors.__getitem__, selection))


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"  # torch maps only what it wrote since 1.6


def _hdf5(file: Path, selection: Selection) -> list[Piece]:
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
    return _pieces(file, [Array(shape, part(name), f"{file}, {name},", mask) for name, shape in shapes.items()])


def _raw(file: Path, selection: Selection) -> list[Piece]:
    """Read a file of numbers and nothing else, such as np.memmap writes, or one of saev's shards."""
    if (file.parent / "shards.json").is_file() and (file.parent / "metadata.json").is_file():
        return _pieces(file, [_saev(file, selection)])
    if not selection.shape or not selection.dtype:
        raise ValueError(
            f"{file} does not say what it holds: add data.source.shape=[tokens,d_model] (-1: as many as there are) "
            "and data.source.dtype=float32"
        )
    array = _mapped(file, selection.dtype, selection.shape)
    return _pieces(file, [_whole(file, array, selection)])


def _mapped(file: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    try:
        kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    except TypeError as error:
        raise ValueError(
            f"data.source.dtype={dtype} is not known, for {file}: use float32, float16, bfloat16"
        ) from error
    size, row = file.stat().st_size, kind.itemsize * math.prod(shape[1:])
    wanted = [size // row if row > 0 and shape[0] == -1 else shape[0], *shape[1:]]
    if min(wanted) < 1 or kind.itemsize * math.prod(wanted) != size:
        raise ValueError(
            f"{file} has {size} bytes, which is not shape {list(shape)} of {dtype}: it is cut short, or "
            "data.source.shape= and dtype= are not what was written"
        )
    return np.memmap(file, kind, "r", shape=tuple(wanted))


def _saev(file: Path, selection: Selection) -> Array:
    """Return one layer of a shard [examples, layers, tokens, d_model]: the layer that data.source.key= names."""
    with reading(file.parent / "metadata.json"):
        about = json.loads((file.parent / "metadata.json").read_text())
        layers = about["layers"]
        patches = next(about[name] for name in SAEV_PATCHES if name in about)
        d_model = next(about[name] for name in ("d_model", "d_vit") if name in about)
        inner = [len(layers), int(patches) + bool(about["cls_token"]), int(d_model)]
    key = layers[0] if selection.key is None and len(layers) == 1 else selection.key
    if str(key) not in map(str, layers):
        raise ValueError(f"{file} holds the layers {', '.join(map(str, layers))}: name one by data.source.key=")
    held = _mapped(file, str(about.get("dtype", "float32")), [-1, *inner])[:, list(map(str, layers)).index(str(key))]
    return _whole(file, held, selection)


SAEV_PATCHES = ("patches_per_ex", "content_tokens_per_example", "n_patches_per_img")  # by the protocol's version


def _parquet(file: Path, selection: Selection) -> list[Piece]:
    import pyarrow.parquet as parquet

    def piece(group: int) -> Piece:
        def read(_rng: np.random.Generator) -> Iterator[Tensor]:
            with reading(file), parquet.ParquetFile(file, memory_map=True) as table:
                names = _columns(table.schema_arrow, selection, file)
                for batch in table.iter_batches(ROWS_PER_DOCUMENT, row_groups=[group], columns=names):
                    yield from _documents(batch, selection, file)

        return read

    with parquet.ParquetFile(file) as table:
        _columns(table.schema_arrow, selection, file)
        return [piece(group) for group in range(table.num_row_groups)]


def _arrow(file: Path, selection: Selection) -> list[Piece]:
    """Read Arrow's own files, as SAELens and the package `datasets` write them: a stream or a file of batches."""

    def read(_rng: np.random.Generator) -> Iterator[Tensor]:
        import pyarrow as arrow

        with reading(file), arrow.memory_map(str(file)) as source:
            for batch in _batches(source):
                names = _columns(batch.schema, selection, file)
                for start in range(0, len(batch), ROWS_PER_DOCUMENT):
                    yield from _documents(batch.select(names).slice(start, ROWS_PER_DOCUMENT), selection, file)

    return [read]


def _batches(source: Any) -> Iterator[Any]:
    import pyarrow.ipc as ipc

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if not is_file:
        yield from ipc.open_stream(source)
        return
    opened = ipc.open_file(source)
    for i in range(opened.num_record_batches):
        yield opened.get_batch(i)


def _columns(schema: Any, selection: Selection, file: Path) -> list[str]:
    """Return the names of the columns with activations, and of the mask: lists, or a dimension each.

    Without a key, columns of numbers have to be alike (d0, d1, ...), because one more float column, such as a score,
    would count as a dimension.
    """
    mask = [] if selection.mask in (None, "none") or str(selection.mask).endswith(".npy") else [str(selection.mask)]
    if mask and mask[0] not in schema.names:
        raise ValueError(f"{file} has no column {mask[0]!r} for the mask; it has {', '.join(schema.names)}")
    if selection.key is not None:
        return [*_matching(schema.names, selection.key, file, "column"), *mask]
    lists = [field.name for field in schema if _is_float_list(field.type)]
    if len(lists) > 1:
        raise ValueError(f"{file} has {len(lists)} columns of lists: name one by data.source.key=")
    if lists:
        return [*lists, *mask]
    names = [name for name in schema.names if name not in mask]
    if wrong := [field for field in schema if field.name in names and not _is_float(field.type)]:
        raise ValueError(
            f"{file} has columns that are not floating-point numbers: {', '.join(map(str, wrong[:5]))}; name those "
            "that are dimensions by data.source.key=, such as 'd*'"
        )
    if len({re.sub(r"\d+$", "", name) for name in names}) > 1 or not all(name[-1:].isdigit() for name in names):
        raise ValueError(
            f"{file} has columns of several kinds ({', '.join(names[:3])} ... {names[-1]}), and each would be a "
            "dimension: name those that are by data.source.key=, such as 'd*' or [x,y]"
        )
    return [*names, *mask]


def _is_float(kind: Any) -> bool:
    import pyarrow as arrow

    return bool(arrow.types.is_floating(kind))


def _is_float_list(kind: Any) -> bool:
    kind = getattr(kind, "storage_type", kind)  # of datasets' Array2D
    return hasattr(kind, "value_type") and hasattr(kind, "value_field") and _has_float_values(kind)


def _has_float_values(kind: Any) -> bool:
    while hasattr(kind, "value_field"):
        kind = kind.value_type
    return _is_float(kind)


def _documents(batch: Any, selection: Selection, file: Path) -> Iterator[Tensor]:
    """Yield the tokens of a batch: one document of rows that are tokens, or a document for each row of lists."""
    mask = None
    if selection.mask in batch.schema.names and selection.mask not in (None, "none"):
        position = batch.schema.names.index(selection.mask)
        mask = batch.column(position).to_numpy(zero_copy_only=False)
        batch = batch.select([name for name in batch.schema.names if name != selection.mask])
    columns = [getattr(column, "storage", column) for column in batch.columns]
    if any(column.null_count for column in columns):
        raise ValueError(f"{file} has rows without a value")
    if wrong := [str(column.type) for column in columns if not _has_float_values(column.type)]:
        raise ValueError(f"{file} has columns that are not floating-point numbers: {wrong[0]}")
    lists = [column for column in columns if hasattr(column.type, "value_field")]
    if lists and len(columns) > 1:
        raise ValueError(f"{file} has {len(lists)} columns of lists: name one by data.source.key=")
    if not lists:
        rows = np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
        yield as_tensor(rows if mask is None else rows[mask != 0], str(file))
    elif not hasattr(lists[0].type.value_type, "value_field"):
        rows = _matrix(lists[0], file)
        yield as_tensor(rows if mask is None else rows[mask != 0], str(file))
    else:
        for i in range(len(lists[0])):
            rows = _matrix(lists[0][i].values, file)
            chosen = rows if mask is None else rows[np.asarray(mask[i]) != 0]
            yield as_tensor(chosen, str(file))


def _matrix(column: Any, file: Path) -> np.ndarray:
    """Return [rows, d_model] of a column of lists of numbers."""
    import pyarrow.compute as compute

    widths = compute.unique(compute.list_value_length(column)).to_pylist()
    if len(widths) > 1:
        raise ValueError(f"{file} has tokens of widths {min(widths)} to {max(widths)}")
    values = column.flatten()
    if hasattr(values.type, "value_field"):
        raise ValueError(f"{file} has lists of lists of lists: a row has to be a token, or a document of tokens")
    if column.null_count or values.null_count:
        raise ValueError(f"{file} has rows without a value")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), -1)


READERS: dict[str, Callable[[Path, Selection], list[Piece]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".pt": _torch,
    ".pth": _torch,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".dat": _raw,
    ".bin": _raw,
}

CONVERT = {
    ".pkl": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".pickle": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".joblib": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".ckpt": "save its tensors by torch.save({'acts': tensor}, 'acts.pt')",
    ".mat": "scipy.io.loadmat reads it: np.save('acts.npy', loadmat(file)['name'])",
    ".zarr": "np.save('acts.npy', zarr.open(file)[:])",
    ".csv": "pandas reads it: np.save('acts.npy', pandas.read_csv(file).to_numpy('float32'))",
    ".tsv": "pandas reads it: np.save('acts.npy', pandas.read_csv(file, sep='\\t').to_numpy('float32'))",
    ".feather": "pyarrow.feather.read_table reads it: write it as parquet",
}


def pieces_of(file: Path, selection: Selection) -> list[Piece]:
    """Return the pieces of a file. Raise ValueError, with its name, if it cannot be read or holds no activations."""
    with reading(file):
        return READERS[file.suffix.lower()](file, selection)


def supported(file: Path) -> bool:
    """Return True for a file that is read; the cache files that `datasets` leaves beside its own are not."""
    return file.suffix.lower() in READERS and not (file.suffix == ".arrow" and file.name.startswith("cache-"))


def unsupported_message(file: Path) -> str:
    """Return the error message for a file of another type, with how to convert it where that is known."""
    advice = CONVERT.get(file.suffix.lower())
    return f"{file} is not a supported file: " + (f"{advice}; or " if advice else "") + f"use {', '.join(READERS)}"


def select(names: Sequence[str], selection: Selection, file: Path) -> list[str]:
    """Return the names of the arrays that the key selects; without a key there has to be one beside a mask."""
    candidates = [name for name in names if name not in (*MASKS, selection.mask)]
    if selection.key is None and len(candidates) == 1:
        return candidates
    if selection.key is None:
        raise ValueError(
            f"{file} contains {len(candidates)} arrays: name one by data.source.key=, of "
            f"{', '.join(candidates[:20])}{' ...' if len(candidates) > 20 else ''}; data.source.key='*' makes a "
            "document of each"
        )
    if isinstance(selection.key, str) and selection.key not in names:
        return _matching(candidates, selection.key, file, "array")
    return _matching(names, selection.key, file, "array")


def _matching(names: Sequence[str], key: str | Sequence[str], file: Path, kind: str) -> list[str]:
    """Return the names that a name, a glob pattern or a list of these matches."""
    wanted = [key] if isinstance(key, str) else [str(one) for one in key]
    for one in wanted:
        if one not in names and not any(fnmatchcase(name, one) for name in names):
            raise ValueError(f"{file} has no {kind} {one!r}; it has {', '.join(names)}")
    return [name for name in names if any(name == one or fnmatchcase(name, one) for one in wanted)]
