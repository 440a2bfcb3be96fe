"""Conditions under which a TopK SAE is trained: their names in tables and their looks in figures.

A new revival or centering needs no entry here: it gets a name and a look of its own, after those of the study.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd


class Condition(NamedTuple):
    """Attributes: name in tables and legends; colour; dash, matplotlib's line style; marker."""

    name: str
    color: str
    dash: Any
    marker: str


# (revival, centering, how b_dec learns beside the rest) -> the condition. Colours are Okabe and Ito's, which the
# colour-blind can tell apart.
CONDITIONS = {
    ("none", "off", ""): Condition("TopK", "#0072B2", "-", "o"),
    ("auxk", "off", ""): Condition("+ AuxK", "#E69F00", "-.", "s"),
    ("none", "off", "fast b_dec"): Condition("+ fast b_dec", "#D55E00", (0, (4, 1, 1, 1, 1, 1)), "P"),
    ("none", "off", "frozen b_dec"): Condition("+ frozen b_dec", "#882255", (0, (1, 1)), "^"),
    ("auxk", "off", "frozen b_dec"): Condition("+ AuxK + frozen b_dec", "#999933", (0, (3, 1, 1, 1)), "<"),
    ("none", "on", ""): Condition("+ centering", "#009E73", "--", "D"),
    ("none", "whiten", ""): Condition("+ whitening", "#CC79A7", ":", "v"),
    ("none", "geometric_median", ""): Condition("TopK + geometric_median", "#56B4E9", "-.", "X"),
    ("none", "layernorm_center", ""): Condition("TopK + layernorm_center", "#999999", (0, (5, 1, 1, 1, 1, 1)), "p"),
}
PARTS = {"topk": "TopK", "auxk": "AuxK", "on": "centering", "whiten": "whitening"}  # of a name put together
OTHER_COLORS = ("#44AA99", "#332288", "#AA4499", "#661100")  # Tol's, likewise
OTHER_DASHES = ((0, (1, 3)), (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (8, 2, 2, 2)), (0, (2, 2)))
OTHER_MARKERS = ("<", ">", "h", "d", "*", "8")


def b_dec_learning(b_dec_lr: float, lr: float, frozen: bool) -> str:
    """Return how b_dec learns beside the other weights: `frozen b_dec`, `fast b_dec`, or nothing where no faster."""
    if frozen:
        return "frozen b_dec"
    return "fast b_dec" if b_dec_lr > lr else ""


def condition_name(sae: str, revival: str, centering: str, b_dec: str = "") -> str:
    """Return the name of a condition out of CONDITIONS, or for example `TopK + resample` or `relu + centering`.

    `b_dec` is its `b_dec_learning`.
    """
    if sae == "topk" and (revival, centering, b_dec) in CONDITIONS:
        return CONDITIONS[revival, centering, b_dec].name
    parts = [sae, *([] if revival == "none" else [revival]), *([] if centering == "off" else [centering])]
    parts += [b_dec] if b_dec else []
    return " + ".join(PARTS.get(part, part) for part in parts)


def conditions_among(names: Iterable[str]) -> dict[str, Condition]:
    """Return the conditions present, by name: those of CONDITIONS in their order, then the others by name."""
    present = set(names)
    known = {condition.name: condition for condition in CONDITIONS.values()}
    others = {
        name: Condition(
            name,
            OTHER_COLORS[i % len(OTHER_COLORS)],
            OTHER_DASHES[i % len(OTHER_DASHES)],
            OTHER_MARKERS[i % len(OTHER_MARKERS)],
        )
        for i, name in enumerate(sorted(present - set(known)))
    }
    return {name: condition for name, condition in (known | others).items() if name in present}


def conditions_of(table: pd.DataFrame) -> dict[str, Condition]:
    """Return the conditions that have a column `<name> init` in a recovery table."""
    return conditions_among(str(column).removesuffix(" init") for column in table if str(column).endswith(" init"))


def place_of(name: str) -> int:
    """Return the place of a condition among all of CONDITIONS; others come after them."""
    names = [condition.name for condition in CONDITIONS.values()]
    return names.index(name) if name in names else len(names)


def centering_dashes(centerings: Iterable[str]) -> dict[str, Any]:
    """Return the dash of each centering: that of its condition without revival, in the order of conditions."""
    by_condition = {condition_name("topk", "none", centering): centering for centering in centerings}
    return {by_condition[name]: condition.dash for name, condition in conditions_among(by_condition).items()}
