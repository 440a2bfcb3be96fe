"""Which activations of a file to read, and what a reader of files returns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS_PER_DOCUMENT = 1024  # where a file has no documents, only [tokens, d_model]
MASKS = ("mask", "attention_mask")  # names by which a mask beside an array is known

Piece = Callable[[np.random.Generator], Iterator[Tensor]]  # reads adjacent documents, possibly in random order


@dataclass(frozen=True)
class Selection:
    """What to read of a file; the attributes are those of `StoredArrays`."""

    key: str | Sequence[str] | None = None
    mask: str | None = None
    shape: Sequence[int] | None = None
    dtype: str | None = None


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
        return matching(candidates, selection.key, file, "array")
    return matching(names, selection.key, file, "array")


def matching(names: Sequence[str], key: str | Sequence[str], file: Path, kind: str) -> list[str]:
    """Return the names that a name, a glob pattern or a list of these matches."""
    wanted = [key] if isinstance(key, str) else [str(one) for one in key]
    for one in wanted:
        if one not in names and not any(fnmatchcase(name, one) for name in names):
            raise ValueError(f"{file} has no {kind} {one!r}; it has {', '.join(names)}")
    return [name for name in names if any(name == one or fnmatchcase(name, one) for one in wanted)]


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
