"""Contigs of the Open MetaGenome corpus, written as gLM2 reads them.

A row of tattabio/OMG is a contig: proteins (`CDS_seqs`) and the DNA between them (`IGS_seqs`), each with the place it
has among both (`CDS_position_ids`, `IGS_position_ids`), and the strand of each protein (`CDS_orientations`, true for
the forward one). The first stretch of DNA is the mark `<sep>`. Source: the README of github.com/TattaBio/OMG.

gLM2 reads `<+>MKV...<+>acgt...<->MLG...`: a strand before each element, proteins in upper case, DNA in lower case and
always `<+>`. Source: the README of github.com/TattaBio/gLM2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sae_outliers.data.hub import HubRows

COLUMNS = ("CDS_seqs", "CDS_position_ids", "CDS_orientations", "IGS_seqs", "IGS_position_ids")


@dataclass(frozen=True, kw_only=True)
class Contigs(HubRows):
    """Contigs of a dataset in OMG's layout, shuffled."""

    def __call__(self, seed: int) -> Iterator[str]:
        return (text for row in self.rows(seed, *COLUMNS) if (text := contig(row)))


def contig(row: dict[str, Any]) -> str:
    """A row's elements in their order. DNA with other letters than A, C, G and T is left out, `<sep>` with it: gLM2
    has no token for them.

    Raises ValueError if the row's lists do not fit together.
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
