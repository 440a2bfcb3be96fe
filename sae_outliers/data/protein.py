"""Protein sequences that come with packages: one document a sequence, in one-letter residues."""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.packages import package_folder

LOCI = {"heavy": ("H",), "light": ("K", "L")}  # IMGT's letters; light chains are kappa or lambda


@dataclass(frozen=True)
class Proteins:
    """Proteins of FASTA files, shuffled.

    Attributes:
        folder: where the `*.faa` and `*.fasta` files are; null for pyhmmer's test data: 2,117 proteins with
            701,000 residues, nearly all of one bacterial genome.
    """

    folder: str | None = None

    def __call__(self, seed: int) -> Iterator[str]:
        """Every distinct sequence once, in an order that `seed` sets.

        Raises FileNotFoundError if the folder has no such file.
        """
        folder = Path(self.folder) if self.folder else pyhmmer_sequences()
        files = sorted(file for file in folder.glob("*") if file.suffix in (".faa", ".fasta"))
        if not files:
            raise FileNotFoundError(f"no .faa or .fasta file in {folder}")
        return shuffled((sequence for file in files for sequence in read_fasta(file)), seed)


@dataclass(frozen=True)
class Germlines:
    """Antibody variable regions as the genomes of several species spell them: IMGT's, in the package anarci.

    Each V gene is followed by one J gene of its locus and species, every J in its turn.

    Attributes:
        chains: `heavy` (998 sequences, 112,000 residues), `light` (620 and 65,000) or both.
    """

    chains: Sequence[str] = ("heavy", "light")

    def __call__(self, seed: int) -> Iterator[str]:
        """Every distinct sequence once, in an order that `seed` sets."""
        genes = read_germlines(package_folder("anarci", "anarci") / "germlines.py")
        loci = [locus for chain in self.chains for locus in LOCI[chain]]
        return shuffled((sequence for locus in loci for sequence in joined(genes, locus)), seed)


def pyhmmer_sequences() -> Path:
    return package_folder("pyhmmer", "pyhmmer") / "tests" / "data" / "seqs"


def shuffled(sequences: Iterator[str], seed: int) -> Iterator[str]:
    distinct = list(dict.fromkeys(sequences))
    random.Random(seed).shuffle(distinct)
    return iter(distinct)


def read_fasta(file: Path) -> Iterator[str]:
    """The sequences of a FASTA file, without the `*` that some end in."""
    for record in f"\n{file.read_text()}".split("\n>")[1:]:
        _, _, lines = record.partition("\n")
        yield "".join(lines.split()).rstrip("*")


def read_germlines(file: Path) -> dict[str, Any]:
    """The aligned genes by segment, locus, species and allele, read as a literal without running the file."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "all_germlines":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{file} assigns no all_germlines")


def joined(genes: dict[str, Any], locus: str) -> Iterator[str]:
    """V and J of each species at `locus`, without gaps; a species with no J there is left out."""
    for species, alleles in genes["V"][locus].items():
        js = list(genes["J"][locus].get(species, {}).values())
        for number, v in enumerate(alleles.values() if js else ()):
            yield (v + js[number % len(js)]).replace("-", "")
