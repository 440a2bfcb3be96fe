"""FASTA files, plain or gz, record by record and never whole."""

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

LONGEST = 1 << 12  # bytes of a line that are read at once: some files have a chromosome on one line


def read_fasta(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and sequence of each record. The sequence comes in pieces of at most 4 kB, which end when the next record
    is asked for.

    Raises ValueError if the file is damaged or does not begin with a record.
    """
    name = None
    for header, pieces in groupby(_pieces(path), itemgetter(0)):
        texts = (text.strip() for _, text in pieces)
        if header:
            name = _name(b"".join(text for _, text in pieces))
        elif name is not None:
            yield name, texts
        elif any(texts):
            raise ValueError(f"{path} is not a FASTA file: it does not begin with >")


def _name(headers: bytes) -> str:
    """The first word after the last > of one or several headers; those before it have no sequence."""
    words = headers.splitlines()[-1][1:].split()
    return words[0].decode("latin-1") if words else "without a name"


def _pieces(path: Path) -> Iterator[tuple[bool, bytes]]:
    """The lines, in pieces, and whether each belongs to a header."""
    header, at_start = False, True
    try:
        with _opened(path) as file:
            while piece := file.readline(LONGEST):
                header = piece.startswith(b">") if at_start else header
                at_start = piece.endswith(b"\n")
                yield header, piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _opened(path: Path) -> io.BufferedReader:
    file = path.open("rb")
    if file.peek(2)[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    return file
