"""Readers of Parquet and Arrow files, whose columns hold activations: lists, or a dimension each."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sae_outliers.data.reading import reading
from sae_outliers.data.selection import ROWS_PER_DOCUMENT, Piece, Selection, as_tensor, matching


def read_parquet(file: Path, selection: Selection) -> list[Piece]:
    """Read a Parquet file, a piece for each row group."""
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


def read_arrow(file: Path, selection: Selection) -> list[Piece]:
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
        return [*matching(schema.names, selection.key, file, "column"), *mask]
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
