"""What a page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

Plot = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Recipe:
    """Something to paste into a terminal or a notebook, with a button that copies it."""

    title: str
    code: str


@dataclass(frozen=True)
class Listing:
    """A table whose columns sort, and which downloads as `<name>.csv` in full precision.

    Attributes:
        share: two columns, of which the first counts a part of the second: drawn as a bar.
        follows_filter: whether the rows whose model the page's filter hides are hidden.
    """

    name: str
    title: str
    frame: pd.DataFrame
    caption: str
    share: tuple[str, str] | None = None
    follows_filter: bool = False


@dataclass(frozen=True)
class Reading:
    """How the points of a chart are walked through by keyboard, and what is said of one.

    Attributes:
        order: the columns that they are in the order of.
        says: title and decimals (None: text) by column.
        opens: what Enter or a click opens, for the hint below the chart; empty: nothing.
    """

    order: tuple[str, ...]
    says: Mapping[str, tuple[str, int | None]]
    opens: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure, which downloads as `<name>.svg`, and the rows of `data` as `<name>.csv`.

    Attributes:
        description: what it shows, for those who cannot see it.
        caption: among others, on what it was measured.
        spec: its data are named datasets of the page.
        data: the dataset that its points are rows of.
        reading: None where there is nothing to walk through.
        follows_filter: whether the rows whose model the page's filter hides are left out.
        on_demand: the page's script draws it, as often as it is asked for, with rows of its own.
    """

    name: str
    title: str
    description: str
    caption: str
    spec: Plot
    data: str
    reading: Reading | None = None
    follows_filter: bool = False
    on_demand: bool = False


@dataclass(frozen=True)
class Fragment:
    """A Jinja template out of the page's own folder, which is given `values`."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)


Block = Prose | Recipe | Listing | Chart | Fragment


@dataclass(frozen=True)
class Section:
    """Attributes: the name in the address; the heading; blocks, of which neighbouring charts stand side by side."""

    name: str
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """Attributes:
    title, subtitle: the heading, and a sentence below it.
    sections: in their order; one without blocks is left out.
    datasets: the frames that charts name.
    warnings: what must be known before anything is read.
    templates: the folder of the page's own templates.
    script, style: the names of its script and style sheet in that folder.
    values: what that script finds in `page.values`, as JSON has it.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    datasets: Mapping[str, pd.DataFrame]
    warnings: Sequence[str] = ()
    templates: Path | None = None
    script: str | None = None
    style: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
