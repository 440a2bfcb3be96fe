"""Protein sequences: one document a sequence, in one-letter residues."""

import ast
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.data.base import matching_files, shuffled, some
from sae_outliers.data.dedup import distinct
from sae_outliers.data.fasta import read_fasta
from sae_outliers.data.hub import HubColumn
from sae_outliers.utils.package_cache import package_folder

SUFFIXES = (".fa", ".faa", ".fasta")
NO_RESIDUES = str.maketrans("", "", "-.*")  # gaps of alignments, and stop codons
LOCI = {"heavy": ("H",), "light": ("K", "L")}  # IMGT's letters; light chains are kappa or lambda


@dataclass(frozen=True, kw_only=True)
class Proteins:
    """Proteins of FASTA files, plain or gz, shuffled.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these; null for pyhmmer's test data: 2,117 proteins
            with 701,000 residues, nearly all of one bacterial genome.
        shortest: sequences with fewer residues are left out.
        share: fraction of the sequences to take, drawn at random. Below 1 for a large file that is sorted, as those
            of UniRef are by length: its first `buffer` sequences do not stand for the others.
        buffer: sequences in memory, among which the next is drawn.
    """

    files: str | Sequence[str] | None = None
    shortest: int = 1
    share: float = 1.0
    buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        """Every distinct sequence, or `share` of them, once.

        Raises FileNotFoundError if there is no file, ValueError if one holds no proteins or only short ones.
        """
        files = packaged_files() if self.files is None else matching_files(self.files, SUFFIXES, seed)
        sequences = (sequence for file in files for sequence in long_enough(fasta_sequences(file), self.shortest))
        none = f"there is no protein of {self.shortest} residues in {self.files}: lower data.source.shortest"
        return shuffled(distinct(some(sequences, none)), seed, self.buffer, self.share)


@dataclass(frozen=True, kw_only=True)
class HubProteins(HubColumn):
    """Proteins in a column of a dataset, shuffled.

    Attributes:
        shortest: sequences with fewer residues are left out.
    """

    column: str = "sequence"
    shortest: int = 1

    def __call__(self, seed: int) -> Iterator[str]:
        sequences = (cleaned(sequence, f"a row of {self.dataset}") for sequence in HubColumn.__call__(self, seed))
        return long_enough(sequences, self.shortest)


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
        sequences = list(distinct(sequence for locus in loci for sequence in joined(genes, locus)))
        random.Random(seed).shuffle(sequences)
        return iter(sequences)


def packaged_files() -> list[Path]:
    """pyhmmer's FASTA files of proteins. Raises ModuleNotFoundError if it is not installed."""
    folder = package_folder("pyhmmer", "pyhmmer") / "tests" / "data" / "seqs"
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES)


def fasta_sequences(file: Path) -> Iterator[str]:
    for name, lines in read_fasta(file):
        yield cleaned(b"".join(lines).decode("latin-1"), f"{file}, record {name},")


def cleaned(sequence: str, where: str) -> str:
    """Upper-case residues, without gaps and stop codons. Raises ValueError if there is anything but letters."""
    residues = "".join(sequence.split()).upper().translate(NO_RESIDUES)
    if wrong := [letter for letter in set(residues) if not ("A" <= letter <= "Z")]:
        raise ValueError(f"{where} has the letter {min(wrong)!r}, which is no residue")
    return residues


def long_enough(sequences: Iterable[str], shortest: int) -> Iterator[str]:
    return (sequence for sequence in sequences if len(sequence) >= max(shortest, 1))


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
