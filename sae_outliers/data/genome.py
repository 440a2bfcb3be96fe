"""Genomes, cut into windows as they are read: memory holds one window and the shuffle's buffer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sae_outliers.data.base import matching_files, shuffled, some
from sae_outliers.data.fasta import read_fasta
from sae_outliers.data.hub import HubRows

SUFFIXES = (".fa", ".fasta", ".fna")
AMBIGUOUS = b"RYSWKMBDHVN"  # the letters for more than one base
LETTERS = b"ACGTacgt" + AMBIGUOUS + AMBIGUOUS.lower()
LINES = 256  # lines of a genome that are handled at once


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a sequence of DNA becomes documents: upper-case, of A, C, G, T and single N.

    Letters for more than one base become N. A run of two or more N is a gap, where a window ends and the next begins.

    Attributes:
        window: bases in a document; at a gap or a sequence's end it has fewer.
        shortest: windows with fewer bases are left out.
        soft_masked: `keep` takes lower-case bases (repeats) like others; `drop` takes them as N.
        max_n: windows with a larger fraction of N are left out.
        glm2: write windows as gLM2 reads DNA, in lower case after `<+>`. It has no token for N, so every N is a gap.
    """

    window: int
    shortest: int = 1000
    soft_masked: str = "keep"
    max_n: float = 0.01
    glm2: bool = False

    def cut(self, pieces: Iterable[bytes], where: str) -> Iterator[str]:
        """The windows of one sequence, which comes in `pieces`. Raises ValueError if a letter is no base."""
        self._check()
        gap = re.compile(rb"N+" if self.glm2 else rb"NN+")
        held = b""
        for bases in self._bases(pieces, where):
            *closed, held = gap.split(held + bases)
            full = max(len(held) - 1, 0) // self.window * self.window  # a last N may be the first of a gap
            for stretch in (*closed, held[:full]):
                yield from self._windows(stretch)
            held = held[full:] or b"NN"  # a gap that may go on
        yield from self._windows(held)

    def none_in(self, place: object) -> str:
        limits = f"{self.shortest} bases or more and a fraction of N up to {self.max_n}"
        return f"no window in {place} has {limits}: change data.source.shortest or max_n"

    def _check(self) -> None:
        if self.soft_masked not in ("keep", "drop"):
            raise ValueError(f"soft_masked={self.soft_masked} does not exist: use keep or drop")
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1 base")

    def _bases(self, pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
        """The sequence in A, C, G, T and N, some lines at a time."""
        masked = b"ACGT" if self.soft_masked == "keep" else b"NNNN"
        table = bytes.maketrans(b"acgt" + AMBIGUOUS + AMBIGUOUS.lower(), masked + b"N" * 2 * len(AMBIGUOUS))
        stream = iter(pieces)
        while lines := list(islice(stream, LINES)):
            text = b"".join(lines)
            if wrong := text.translate(None, LETTERS):
                raise ValueError(f"{where} has the letter {chr(wrong[0])!r}, which is no base (proteins: data=fasta)")
            yield text.translate(table)

    def _windows(self, stretch: bytes) -> Iterator[str]:
        for start in range(0, len(stretch), self.window):
            window = stretch[start : start + self.window].strip(b"N")
            if len(window) >= max(self.shortest, 1) and window.count(b"N") <= self.max_n * len(window):
                text = window.decode("ascii")
                yield f"<+>{text.lower()}" if self.glm2 else text


@dataclass(frozen=True, kw_only=True)
class Genome(Windows):
    """Windows of the sequences in FASTA files, plain or gz, shuffled.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these.
        share: fraction of the windows to take, drawn at random. Below 1 for a genome of more bases than `buffer`
            windows have, whose first documents would all come from the start of its first chromosome.
        buffer: windows in memory, among which the next is drawn.
    """

    files: str | Sequence[str]
    share: float = 1.0
    buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        """Every window, or `share` of them, once.

        Raises FileNotFoundError if there is no file, ValueError if one holds no DNA or no long enough window.
        """
        windows = (
            window
            for path in matching_files(self.files, SUFFIXES, seed)
            for name, pieces in read_fasta(path)
            for window in self.cut(pieces, f"{path}, record {name},")
        )
        return shuffled(some(windows, self.none_in(self.files)), seed, self.buffer, self.share)


@dataclass(frozen=True, kw_only=True)
class HubGenome(Windows, HubRows):
    """Windows of the sequences in a column of a dataset, shuffled once more among `windows_buffer` windows.

    `buffer` counts rows here, each a sequence of up to several megabases.
    """

    column: str = "text"
    windows_buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        rows = (row[self.column].encode() for row in self.rows(seed, self.column) if row[self.column])
        windows = (window for row in rows for window in self.cut([row], f"a row of {self.dataset}"))
        return shuffled(some(windows, self.none_in(self.dataset)), seed, self.windows_buffer)
