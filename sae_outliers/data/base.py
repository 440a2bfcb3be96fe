"""Helpers of the data sources: find files, shuffle a stream, and check that it is not empty."""

import random
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def matching_files(files: str | Sequence[str], suffixes: Iterable[str], seed: int) -> list[Path]:
    """Return the files that `files` names, each once, in an order determined by `seed`.

    Args:
        files: a file, a folder (all files below it with one of `suffixes`), a glob pattern, or several of these.
        suffixes: such as `.fasta`, which also matches `.fasta.gz`.

    Raise FileNotFoundError if a name matches no file.
    """
    names = [files] if isinstance(files, str) else files
    found = sorted({path for name in names for path in _files_at(Path(name).expanduser(), tuple(suffixes))})
    random.Random(seed).shuffle(found)  # of the sorted files: the order of a folder differs between file systems
    return found


def _files_at(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
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


def shuffled(documents: Iterable[T], seed: int, buffer: int, fraction: float = 1.0) -> Iterator[T]:
    """Yield the documents in an order determined by `seed`, with at most `buffer` of them in memory.

    Documents move by about `buffer` positions at most, so that the first ones from a sorted file that is longer than
    the buffer are alike. A random `fraction` of the documents makes the same buffer span a longer part of the file.

    Raise ValueError if the fraction or the buffer is too small to yield anything.
    """
    if not 0 < fraction <= 1 or buffer < 1:
        raise ValueError(f"share={fraction} must be above 0 and at most 1, and buffer={buffer} at least 1")
    rng = random.Random(seed)
    held: list[T] = []
    for document in documents:
        if fraction < 1 and rng.random() >= fraction:
            continue
        held.append(document)
        if len(held) > buffer:
            i = rng.randrange(len(held))
            # swapped with the last, because removing from the middle of a list takes time proportional to its length
            held[i], held[-1] = held[-1], held[i]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def require_nonempty(items: Iterable[T], message: str) -> Iterator[T]:
    """Return an iterator over `items`. Raise ValueError with `message` if there are none."""
    stream = iter(items)
    for first in stream:
        return chain([first], stream)
    raise ValueError(message)
