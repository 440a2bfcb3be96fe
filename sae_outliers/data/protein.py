"""Protein sequences, one per document, in one-letter residues."""

import ast
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.data.base import matching_files, require_nonempty, shuffled
from sae_outliers.data.dedup import distinct
from sae_outliers.data.fasta import read_fasta
from sae_outliers.data.hub import HubColumn
from sae_outliers.utils.package_cache import package_folder

SUFFIXES = (".fa", ".faa", ".fasta")
NON_RESIDUES = str.maketrans("", "", "-.*")  # alignment gaps and stop codons
LOCI = {"heavy": ("H",), "light": ("K", "L")}  # IMGT's loci; light chains are kappa or lambda


@dataclass(frozen=True, kw_only=True)
class Proteins:
    """A source of proteins from FASTA files, plain or gzipped, shuffled.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these; null: pyhmmer's test data, 2,117 proteins with
            701,000 residues, nearly all from one bacterial genome.
        shortest: sequences with fewer residues are skipped.
        share: fraction of the sequences to use, drawn at random. Use less than 1 for a large sorted file, such as
            UniRef's, which are sorted by length: its first `buffer` sequences are not representative.
        buffer: sequences in memory, from which the next is drawn.
    """

    files: str | Sequence[str] | None = None
    shortest: int = 1
    share: float = 1.0
    buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        """Return an iterator over the distinct sequences, or `share` of them.

        Raise FileNotFoundError if there is no file, ValueError if a file is not protein or all sequences are too short.
        """
        files = packaged_files() if self.files is None else matching_files(self.files, SUFFIXES, seed)
        sequences = (sequence for file in files for sequence in long_enough(fasta_sequences(file), self.shortest))
        message = f"there is no protein of {self.shortest} residues in {self.files}: lower data.source.shortest"
        return shuffled(distinct(require_nonempty(sequences, message)), seed, self.buffer, self.share)


@dataclass(frozen=True, kw_only=True)
class HubProteins(HubColumn):
    """A source of proteins from a column of a dataset, shuffled.

    Attributes:
        shortest: sequences with fewer residues are skipped.
    """

    column: str = "sequence"
    shortest: int = 1

    def __call__(self, seed: int) -> Iterator[str]:
        sequences = (cleaned(sequence, f"a row of {self.dataset}") for sequence in HubColumn.__call__(self, seed))
        return long_enough(sequences, self.shortest)


@dataclass(frozen=True)
class Germlines:
    """A source of germline antibody variable regions of several species: IMGT's, from the package anarci.

    Each V gene is joined to one J gene of its locus and species, cycling through the J genes.

    Attributes:
        chains: `heavy` (998 sequences, 112,000 residues), `light` (620 and 65,000) or both.
    """

    chains: Sequence[str] = ("heavy", "light")

    def __call__(self, seed: int) -> Iterator[str]:
        """Return an iterator over the distinct sequences, in an order determined by `seed`."""
        genes = read_germlines(package_folder("anarci", "anarci") / "germlines.py")
        loci = [locus for chain in self.chains for locus in LOCI[chain]]
        sequences = list(distinct(sequence for locus in loci for sequence in joined(genes, locus)))
        random.Random(seed).shuffle(sequences)
        return iter(sequences)


def packaged_files() -> list[Path]:
    """Return pyhmmer's FASTA files of proteins. Raise ModuleNotFoundError if it is not installed."""
    folder = package_folder("pyhmmer", "pyhmmer") / "tests" / "data" / "seqs"
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES)


def fasta_sequences(file: Path) -> Iterator[str]:
    """Yield the cleaned sequence of each record."""
    for name, lines in read_fasta(file):
        yield cleaned(b"".join(lines).decode("latin-1"), f"{file}, record {name},")


def cleaned(sequence: str, where: str) -> str:
    """Return upper-case residues without gaps and stop codons. Raise ValueError for anything but letters."""
    residues = "".join(sequence.split()).upper().translate(NON_RESIDUES)
    if wrong := [letter for letter in set(residues) if not ("A" <= letter <= "Z")]:
        raise ValueError(f"{where} has the letter {min(wrong)!r}, which is not a residue")
    return residues


def long_enough(sequences: Iterable[str], min_length: int) -> Iterator[str]:
    """Yield the sequences with at least `min_length` residues, and never an empty one."""
    return (sequence for sequence in sequences if len(sequence) >= max(min_length, 1))


def read_germlines(file: Path) -> dict[str, Any]:
    """Return the aligned genes by segment, locus, species and allele, parsed as a literal without running the file."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "all_germlines":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{file} assigns no all_germlines")


def joined(genes: dict[str, Any], locus: str) -> Iterator[str]:
    """Yield joined V and J genes of each species at `locus`, without gaps; skip a species without J genes there."""
    for species, alleles in genes["V"][locus].items():
        js = list(genes["J"][locus].get(species, {}).values())
        for i, v in enumerate(alleles.values() if js else ()):
            yield (v + js[i % len(js)]).replace("-", "")
