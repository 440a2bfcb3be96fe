"""Genomes, cut into windows while they are read: only one window and the shuffle buffer are in memory."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sae_outliers.data.base import matching_files, require_nonempty, shuffled
from sae_outliers.data.fasta import read_fasta
from sae_outliers.data.hub import HubRows

SUFFIXES = (".fa", ".fasta", ".fna")
AMBIGUOUS = b"RYSWKMBDHVN"  # IUPAC codes for more than one base
LETTERS = b"ACGTacgt" + AMBIGUOUS + AMBIGUOUS.lower()
LINES_AT_ONCE = 256  # amortises the cost of a call over more than the 60 to 80 bases of a line


@dataclass(frozen=True, kw_only=True)
class DnaWindows:
    """The rules by which a DNA sequence is cut into documents, in upper case, of A, C, G, T and single N.

    Codes for more than one base become N. Two or more N in a row are a gap, which no window spans.

    Attributes:
        window: bases in a document; fewer before a gap or the end of a sequence.
        shortest: windows with fewer bases are skipped.
        soft_masked: `keep` treats lower-case bases (repeats) like others; `drop` treats them as N.
        max_n: windows with a larger fraction of N are skipped.
        piece: bases in a document instead of `window`, for a model whose config sets them.
        overlap: bases that consecutive windows share, for a model whose tokens are only those in the middle.
        glm2: write windows in gLM2's notation, in lower case after `<+>`. It has no token for N, so every N is a gap.
    """

    window: int
    shortest: int = 1000
    soft_masked: str = "keep"
    max_n: float = 0.01
    glm2: bool = False
    piece: int | None = None
    overlap: int = 0

    def cut(self, pieces: Iterable[bytes], where: str) -> Iterator[str]:
        """Yield the windows of one sequence, given in `pieces`. Raise ValueError if a letter is not a base."""
        self._check()
        gap = re.compile(rb"N+" if self.glm2 else rb"NN+")
        held = b""
        for bases in self._bases(pieces, where):
            *closed, held = gap.split(held + bases)
            # the last N may be the first of a gap
            full = max((len(held) - 1 - self.overlap) // self._step, 0) * self._step
            for stretch in (*closed, held[: full + self.overlap] if full else b""):
                yield from self._windows(stretch)
            held = held[full:] or b"NN"  # a gap that may continue
        yield from self._windows(held)

    def empty_message(self, place: object) -> str:
        """Return the error message for a source without a single window."""
        limits = f"{self.shortest} bases or more and a fraction of N up to {self.max_n}"
        return f"no window in {place} has {limits}: change data.source.shortest or max_n"

    def _check(self) -> None:
        if self.soft_masked not in ("keep", "drop"):
            raise ValueError(f"soft_masked={self.soft_masked} does not exist: use keep or drop")
        if self._size < 1:
            raise ValueError(f"window={self._size} must be at least 1 base")
        if not 0 <= self.overlap < self._size:
            raise ValueError(f"windows of {self._size} bases cannot overlap by {self.overlap}")

    @property
    def _size(self) -> int:
        return self.window if self.piece is None else self.piece

    @property
    def _step(self) -> int:
        return self._size - self.overlap

    def _bases(self, pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
        """Yield the sequence as A, C, G, T and N, several lines at a time."""
        masked = b"ACGT" if self.soft_masked == "keep" else b"NNNN"
        table = bytes.maketrans(b"acgt" + AMBIGUOUS + AMBIGUOUS.lower(), masked + b"N" * 2 * len(AMBIGUOUS))
        stream = iter(pieces)
        while lines := list(islice(stream, LINES_AT_ONCE)):
            text = b"".join(lines)
            if wrong := text.translate(None, LETTERS):
                raise ValueError(
                    f"{where} has the letter {chr(wrong[0])!r}, which is not a base (proteins: data=fasta)"
                )
            yield text.translate(table)

    def _windows(self, stretch: bytes) -> Iterator[str]:
        for start in range(0, max(len(stretch) - self.overlap, min(len(stretch), 1)), self._step):
            window = stretch[start : start + self._size].strip(b"N")
            if len(window) >= max(self.shortest, 1) and window.count(b"N") <= self.max_n * len(window):
                text = window.decode("ascii")
                yield f"<+>{text.lower()}" if self.glm2 else text


@dataclass(frozen=True, kw_only=True)
class Genome(DnaWindows):
    """A source of windows of the sequences in FASTA files, plain or gzipped, shuffled.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these.
        share: fraction of the windows to use, drawn at random. Use less than 1 for a genome longer than `buffer`
            windows, because its first documents would otherwise all come from the start of its first chromosome.
        buffer: windows in memory, from which the next is drawn.
    """

    files: str | Sequence[str]
    share: float = 1.0
    buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        """Return an iterator over all windows, or `share` of them.

        Raise FileNotFoundError if there is no file, ValueError if a file is not DNA or no window is long enough.
        """
        windows = (
            window
            for path in matching_files(self.files, SUFFIXES, seed)
            for name, pieces in read_fasta(path)
            for window in self.cut(pieces, f"{path}, record {name},")
        )
        return shuffled(require_nonempty(windows, self.empty_message(self.files)), seed, self.buffer, self.share)


@dataclass(frozen=True, kw_only=True)
class HubGenome(DnaWindows, HubRows):
    """A source of windows of the sequences in a column of a dataset.

    They are shuffled twice: `buffer` counts rows, each a sequence of up to several megabases, and `windows_buffer` the
    windows that are cut from them.
    """

    column: str = "text"
    windows_buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        rows = (row[self.column].encode() for row in self.rows(seed, self.column) if row[self.column])
        windows = (window for row in rows for window in self.cut([row], f"a row of {self.dataset}"))
        return shuffled(require_nonempty(windows, self.empty_message(self.dataset)), seed, self.windows_buffer)
