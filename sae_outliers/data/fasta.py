"""Read FASTA files, plain or gzipped, as streams of records and lines."""

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

MAX_PIECE = 1 << 12  # bytes of a line that are read at once, because some files have a chromosome on one line


def read_fasta(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name and the sequence of each record, the sequence as an iterator of pieces of at most 4 kB.

    Read the pieces of a record before you ask for the next one. Raise ValueError if the file is damaged or does not
    begin with a record.
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
    """Return the first word of the last of several consecutive headers; the others have no sequence."""
    words = headers.splitlines()[-1][1:].split()
    return words[0].decode("latin-1") if words else "without a name"


def _pieces(path: Path) -> Iterator[tuple[bool, bytes]]:
    """Yield the lines in pieces, each with True if it belongs to a header."""
    header, at_start = False, True
    try:
        with _open(path) as file:
            while piece := file.readline(MAX_PIECE):
                header = piece.startswith(b">") if at_start else header
                at_start = piece.endswith(b"\n")
                yield header, piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _open(path: Path) -> io.BufferedReader:
    file = path.open("rb")
    if file.peek(2)[:2] == b"\x1f\x8b":  # gzip's magic number: names are not reliable
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    return file
