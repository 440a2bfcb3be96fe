"""From a Page to HTML."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sae_outliers.pages.blocks import Block, Chart, Listing, Page
from sae_outliers.pages.encode import encode, json_in_html, plain
from sae_outliers.pages.theme import COLORS, themed
from sae_outliers.pages.vega import vega_script
from sae_outliers.utils.cells import format_for_display

TEMPLATES = Path(__file__).parent / "templates"


def html_of(page: Page) -> str:
    """Return the page; the same page gives the same text."""
    folders = [TEMPLATES, *([page.templates] if page.templates else [])]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment.get_template("page.html.jinja").render(
        page=page,
        sections=[section for section in page.sections if section.blocks],
        rows_of_blocks=rows_of_blocks,
        table_of=table_of,
        colors=COLORS,
        data=Markup(json_in_html(_data(page))),
        style=Markup((TEMPLATES / "page.css").read_text("utf-8") + _own(page, page.style)),
        scripts=[
            Markup(text)
            for text in (vega_script(), (TEMPLATES / "page.js").read_text("utf-8"), _own(page, page.script))
            if text
        ],
    )


def _own(page: Page, name: str | None) -> str:
    """Return a file of the page's own folder; nothing where it has none."""
    return (page.templates / name).read_text("utf-8") if page.templates and name else ""


def prose(text: str) -> Markup:
    """Return a text in which `words between backticks`, as notes of tables have them, are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def rows_of_blocks(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Yield blocks in their order with the name of their type; neighbouring charts, which share a row, together."""
    for kind, run in groupby(blocks, lambda block: type(block).__name__):
        if kind == "Chart":
            yield kind, list(run)
        else:
            yield from ((kind, [block]) for block in run)


def table_of(listing: Listing) -> dict[str, Any]:
    """Return the heads (name, whether a number), the rows (model, cells with text and value to sort by), and the place
    of the column that a `share` is drawn of.
    """
    frame, shown = listing.frame, format_for_display(listing.frame)
    heads = [(name, name not in frame or pd.api.types.is_numeric_dtype(frame[name])) for name in shown]
    values = [frame[name] if number and name in frame else shown[name] for name, number in heads]
    models = frame["model"].astype(str) if "model" in frame else [""] * len(frame)
    rows = [
        (model, [{"text": text, "value": plain(value)} for text, value in zip(texts, row, strict=True)])
        for model, texts, row in zip(models, shown.to_numpy(), zip(*values, strict=True), strict=True)
    ]
    whole = list(shown).index(listing.share[1]) if listing.share else None
    return {"heads": heads, "rows": rows, "whole": whole}


def _data(page: Page) -> dict[str, Any]:
    """Return what the scripts read."""
    blocks = [block for section in page.sections for block in section.blocks]
    charts = [block for block in blocks if isinstance(block, Chart)]
    return {
        "colors": COLORS,
        "datasets": {name: encode(frame) for name, frame in page.datasets.items()},
        "charts": {chart.name: _chart(chart) for chart in charts},
        "tables": {block.name: block.frame.to_csv(index=False) for block in blocks if isinstance(block, Listing)},
        "values": dict(page.values),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    reading = chart.reading
    return {
        "spec": themed(chart.spec.to_dict(), reading is not None),
        "data": chart.data,
        "follows_filter": chart.follows_filter,
        "order": list(reading.order) if reading else [],
        "says": [[column, title, decimals] for column, (title, decimals) in reading.says.items()] if reading else [],
        "opens": reading.opens if reading else "",
    }
