"""Human DNA from an EMBL flat file of the Debian package emboss-test."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sae_outliers.utils.package_cache import cache_folder

HUM1 = "usr/share/EMBOSS/test/embl/hum1.dat"

# The file's genomic records of at least 15 kb: the HLA class I region (2.2 Mb of 6p21.3), clones of chromosomes 5 and
# 16, the beta globin region, thymidylate synthase. AF129756 is excluded because BA000025 contains it.
RECORDS = ("BA000025", "AC004629", "U01317", "Z69719", "D00596")


def human_dna_file() -> Path:
    """Return the path of hum1.dat, in the system or in the cache. Raise FileNotFoundError if it is in neither."""
    places = [Path("/") / HUM1, cache_folder() / "emboss-test" / HUM1]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        "hum1.dat of the Debian package emboss-test is missing: run `make weights SPLICEAI=yes` in a checkout, or "
        "`apt install emboss-test`"
    )


def read_embl(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the accession and the upper-case sequence of each record of an EMBL flat file."""
    accession, in_sequence = "", False
    blocks: list[str] = []
    with path.open(encoding="latin-1") as file:
        for line in file:
            if line.startswith("ID "):
                accession = line.split()[1].rstrip(";")
            elif line.startswith("SQ "):
                blocks, in_sequence = [], True
            elif line.startswith("//"):
                yield accession, "".join(blocks).upper()
                in_sequence = False
            elif in_sequence:
                blocks += line.split()[:-1]  # the last column is the position


class HumanDna:
    """A source of pieces of human DNA, shuffled.

    Args:
        piece: bases in a document; the last one of a record may be shorter.
        overlap: bases that consecutive pieces share, for a model whose tokens are only those in the middle.
        file: an EMBL flat file; None: hum1.dat.
        records: accessions to use; None: all records.
    """

    def __init__(
        self,
        piece: int,
        overlap: int = 0,
        file: str | None = None,
        records: tuple[str, ...] | list[str] | None = RECORDS,
    ) -> None:
        if not 0 <= overlap < piece:
            raise ValueError(f"pieces of {piece} bases cannot overlap by {overlap}")
        path = Path(file).expanduser() if file else human_dna_file()
        sequences = [s for accession, s in read_embl(path) if records is None or accession in records]
        self.pieces = [part for sequence in sequences for part in pieces(sequence, piece, overlap)]

    def __call__(self, seed: int) -> Iterator[str]:
        for i in np.random.default_rng(seed).permutation(len(self.pieces)):
            yield self.pieces[i]


def pieces(sequence: str, piece: int, overlap: int) -> list[str]:
    """Return pieces that cover the sequence, none of which lies completely inside the previous one."""
    last = max(len(sequence) - overlap, 1)
    return [sequence[start : start + piece] for start in range(0, last, piece - overlap)]
