"""What sources share: which files, in which order, and that there is something in them."""

import random
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def matching_files(files: str | Sequence[str], suffixes: Iterable[str], seed: int) -> list[Path]:
    """The files that `files` names, each once, in an order that `seed` sets.

    Args:
        files: a file, a folder (all files below it with one of `suffixes`), a glob pattern, or several of these.
        suffixes: such as `.fasta`; `.fasta.gz` counts as well.

    Raises FileNotFoundError for a name without files.
    """
    names = [files] if isinstance(files, str) else files
    found = sorted({path for name in names for path in _files_of(Path(name).expanduser(), tuple(suffixes))})
    random.Random(seed).shuffle(found)
    return found


def _files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.lower().removesuffix(".gz").endswith(suffixes)]
        wanted = f"{', '.join(suffixes)} file, plain or .gz, below"
    else:
        found = [Path(name) for name in glob(str(path), recursive=True)] if has_magic(str(path)) else []
        wanted = "file"
    found = [file for file in found if file.is_file()]
    if not found:
        raise FileNotFoundError(f"no {wanted} {path}")
    return found


def shuffled(documents: Iterable[T], seed: int, buffer: int, share: float = 1.0) -> Iterator[T]:
    """The documents in an order that `seed` sets, with at most `buffer` of them in memory.

    A document comes out about `buffer` places, or less, from where it went in: of a file that is sorted and longer
    than the buffer, the first documents are like each other. `share` below 1 takes so many of them at random, which
    spreads the same buffer over a longer stretch.

    Raises ValueError for a share or buffer that takes none.
    """
    if not 0 < share <= 1 or buffer < 1:
        raise ValueError(f"share={share} must be above 0 and at most 1, and buffer={buffer} at least 1")
    rng = random.Random(seed)
    held: list[T] = []
    for document in documents:
        if share < 1 and rng.random() >= share:
            continue
        held.append(document)
        if len(held) > buffer:
            i = rng.randrange(len(held))
            held[i], held[-1] = held[-1], held[i]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def some(documents: Iterable[T], otherwise: str) -> Iterator[T]:
    """The documents. Raises ValueError, saying `otherwise`, if there is none."""
    stream = iter(documents)
    for first in stream:
        return chain([first], stream)
    raise ValueError(otherwise)
