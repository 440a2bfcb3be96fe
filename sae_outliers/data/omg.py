"""Contigs of the Open MetaGenome corpus, in gLM2's notation.

A row of tattabio/OMG is a contig: proteins (`CDS_seqs`) and the DNA between them (`IGS_seqs`), with the position of
each in the contig (`CDS_position_ids`, `IGS_position_ids`) and the strand of each protein (`CDS_orientations`, true for
forward). The first DNA element is the marker `<sep>`. Source: the README of github.com/TattaBio/OMG.

gLM2's notation is `<+>MKV...<+>acgt...<->MLG...`: a strand before each element, proteins in upper case, DNA in lower
case and always `<+>`. Source: the README of github.com/TattaBio/gLM2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sae_outliers.data.hub import HubRows

COLUMNS = ("CDS_seqs", "CDS_position_ids", "CDS_orientations", "IGS_seqs", "IGS_position_ids")


@dataclass(frozen=True, kw_only=True)
class Contigs(HubRows):
    """A source of contigs from a dataset in OMG's layout, shuffled."""

    def __call__(self, seed: int) -> Iterator[str]:
        return (text for row in self.rows(seed, *COLUMNS) if (text := contig(row)))


def contig(row: dict[str, Any]) -> str:
    """Return a row's elements in order. Skip DNA with letters other than A, C, G and T, including `<sep>`, because
    gLM2 has no tokens for them.

    Raise ValueError if the row's lists differ in length.
    """
    try:
        proteins = zip(row["CDS_position_ids"], row["CDS_orientations"], row["CDS_seqs"], strict=True)
        elements = {place: ("<+>" if forward else "<->") + seq.upper() for place, forward, seq in proteins}
        between = dict(zip(row["IGS_position_ids"], row["IGS_seqs"], strict=True))
    except ValueError as error:
        raise ValueError(f"a row is not in OMG's layout, its lists have different lengths: {error}") from error
    elements |= {
        place: f"<+>{seq.lower()}" for place, seq in between.items() if seq and set(seq.upper()) <= set("ACGT")
    }
    return "".join(elements[place] for place in sorted(elements))
