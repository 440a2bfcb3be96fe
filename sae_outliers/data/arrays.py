"""Activations stored by other programs, as documents: npy, npz, safetensors and parquet files.

An array is [tokens, d_model], or [n, tokens, d_model] with n documents. Files are memory-mapped or read in pieces, so
that arrays may be larger than memory; only an array in an npz file must fit into it. Nothing is unpickled.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

ROWS_PER_DOCUMENT = 1024  # where a file has no documents, only [tokens, d_model]
SIGNIFICAND_BITS = {torch.float16: 11, torch.bfloat16: 8}

Piece = Callable[[np.random.Generator], Iterator[Tensor]]  # reads adjacent documents, possibly in random order


@dataclass(frozen=True)
class StoredArrays:
    """A source of documents [tokens, d_model], float32, in an order determined by the seed.

    Attributes:
        path: a file, or a folder with files at any depth.
        key: the name of the array in npz and safetensors files, or of the list column in parquet files; None if there
            is only one.
        pattern: glob pattern for the names of files in a folder.
    """

    path: str | None
    key: str | None = None
    pattern: str = "*"

    def __call__(self, seed: int) -> Iterator[Tensor]:
        """Return an iterator over the documents. The pieces of all files are shuffled together, where a piece is an npz
        file, a row group of a parquet file, or a document of another file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an array is missing, or has an unsupported shape or type, non-finite values, or another width
                than the first.
        """
        files = self.files()
        rng = np.random.default_rng(seed)
        pieces = [(file, piece) for file in files for piece in READERS[file.suffix](file, self.key)]
        documents = ((pieces[i][0], d) for i in rng.permutation(len(pieces)) for d in pieces[i][1](rng))
        return _checked(documents)

    def files(self) -> list[Path]:
        """Return the files to read. Raise FileNotFoundError or ValueError as `__call__` does."""
        if self.path is None:
            raise ValueError("no stored activations are named: add path=<file or folder>")
        path = Path(self.path).expanduser()
        if path.is_file() and path.suffix not in READERS:
            raise ValueError(f"{path} is not a supported file: use {', '.join(READERS)}")
        found = [path] if path.is_file() else sorted(f for f in path.rglob(self.pattern) if f.suffix in READERS)
        if not found:
            raise FileNotFoundError(
                f"{path} is neither a file nor a folder with {self.pattern} files ({', '.join(READERS)})"
            )
        return found


class AlphaFold3Outputs(StoredArrays):
    """A source of AlphaFold 3's single representations: a document for each job and seed, stored as float16.

    `run_alphafold.py --save_embeddings=true` writes `<job>/seed-<n>_embeddings/<job>_seed-<n>_embeddings.npz`, or
    `embeddings.npz` in its first releases, with `single_embeddings` [tokens, 384] and `pair_embeddings`.
    """

    def __init__(self, path: str | None) -> None:
        super().__init__(path, key="single_embeddings", pattern="*embeddings.npz")

    def files(self) -> list[Path]:
        """Return the files to read; an error adds how to make AlphaFold 3 write them."""
        try:
            return super().files()
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{error}; AlphaFold 3 writes them when run with --save_embeddings=true") from error


def _checked(documents: Iterator[tuple[Path, Tensor]]) -> Iterator[Tensor]:
    """Yield the documents in float32, with one warning if any has 16 bits. Raise ValueError as `StoredArrays` does."""
    first: tuple[Path, int] | None = None
    warned = False
    for file, document in documents:
        first = first or (file, document.shape[1])
        if document.shape[1] != first[1]:
            raise ValueError(f"{file} has tokens of width {document.shape[1]}, but {first[0]} of {first[1]}")
        if (bits := SIGNIFICAND_BITS.get(document.dtype)) and not warned:
            warned = True
            log.warning(
                "%s has %d significant bits per value: where |μ|/σ of a dimension exceeds about %d, its variation was "
                "lost in rounding, and γ and the dead features may differ from the network's",
                file, bits, 2**bits,
            )  # fmt: skip
        document = document.float()
        if not document.isfinite().all():
            row, column = (~document.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"{file} contains {document[row, column]}, in row {row} of {len(document)} of a document, "
                f"column {column}"
            )
        yield document


def _npy(file: Path, _key: str | None) -> list[Piece]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return [_piece(array, part, str(file)) for part in _parts(array.shape, str(file))]


def _piece(array: np.ndarray, part: Any, where: str) -> Piece:
    # not inside the loop of the caller, where every lambda would see the last `part`
    return lambda _rng: iter([_tensor(array[part], where)])


def _npz(file: Path, key: str | None) -> list[Piece]:
    def read(rng: np.random.Generator) -> Iterator[Tensor]:
        with np.load(file, allow_pickle=False) as archive:
            name = _select_array(archive.files, key, file)
            array = archive[name]
        where = f"{file}, {name},"
        parts = _parts(array.shape, where)
        return (_tensor(array[parts[i]], where) for i in rng.permutation(len(parts)))

    return [read]


def _safetensors(file: Path, key: str | None) -> list[Piece]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        name = _select_array(list(tensors.keys()), key, file)
        shape = tensors.get_slice(name).get_shape()
    where = f"{file}, {name},"

    def piece(part: Any) -> Piece:
        def read(_rng: np.random.Generator) -> Iterator[Tensor]:
            with safe_open(file, framework="pt") as tensors:
                yield _floating(tensors.get_slice(name)[part], where)

        return read

    return [piece(part) for part in _parts(shape, where)]


def _parquet(file: Path, key: str | None) -> list[Piece]:
    import pyarrow.parquet as parquet

    def piece(group: int) -> Piece:
        def read(_rng: np.random.Generator) -> Iterator[Tensor]:
            with parquet.ParquetFile(file, memory_map=True) as table:
                columns = [key] if key else None
                for batch in table.iter_batches(ROWS_PER_DOCUMENT, row_groups=[group], columns=columns):
                    yield _tensor(_rows(batch, file), str(file))

        return read

    with parquet.ParquetFile(file) as table:
        if key and key not in table.schema_arrow.names:
            raise ValueError(f"{file} has no column {key!r}; it has {', '.join(table.schema_arrow.names)}")
        return [piece(group) for group in range(table.num_row_groups)]


def _rows(batch: Any, file: Path) -> np.ndarray:
    """Return [rows, d_model] of an arrow batch: its only column of lists, or all columns, each a dimension."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    lists = [column for column in batch.columns if hasattr(column.type, "value_field")]
    if len(lists) > 1:
        raise ValueError(f"{file} has {len(lists)} columns of lists: name one by data.source.key=")
    if not lists and not all(arrow.types.is_floating(column.type) for column in batch.columns):
        raise ValueError(f"{file} has columns that are not floating-point numbers: {', '.join(map(str, batch.schema))}")
    if any(column.null_count for column in lists or batch.columns):
        raise ValueError(f"{file} has rows without a value")
    if not lists:
        return np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
    widths = compute.unique(compute.list_value_length(lists[0])).to_pylist()
    if len(widths) > 1:
        raise ValueError(f"{file} has tokens of widths {min(widths)} to {max(widths)}")
    values = lists[0].flatten()
    if hasattr(values.type, "value_field"):
        raise ValueError(f"{file} has lists of lists: a row has to be one token")
    return values.to_numpy(zero_copy_only=False).reshape(len(batch), widths[0])


READERS: dict[str, Callable[[Path, str | None], list[Piece]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}


def _parts(shape: Sequence[int], where: str) -> list[Any]:
    """Return the index of each document in an array of that shape."""
    if len(shape) == 3:
        return list(range(shape[0]))
    if len(shape) == 2:
        starts = range(0, shape[0], ROWS_PER_DOCUMENT)
        return [slice(start, start + ROWS_PER_DOCUMENT) for start in starts]
    raise ValueError(f"{where} has shape {list(shape)}: use [tokens, d_model] or [n, tokens, d_model]")


def _tensor(array: np.ndarray, where: str) -> Tensor:
    """Return a copy, because memory-mapped files must not be written to. Raise ValueError unless it holds floats."""
    if array.dtype.kind != "f":
        raise ValueError(f"{where} contains {array.dtype}, not floating-point numbers")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # torch has no other byte order


def _floating(tensor: Tensor, where: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"{where} contains {tensor.dtype}, not floating-point numbers")
    return tensor


def _select_array(names: Sequence[str], key: str | None, file: Path) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(f"{file} contains {len(names)} arrays: name one by data.source.key=, of {', '.join(names)}")
    if key not in names:
        raise ValueError(f"{file} contains no {key!r}; it contains {', '.join(names)}")
    return key
