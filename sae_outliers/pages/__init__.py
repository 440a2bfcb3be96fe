"""A page in one file: text, tables that sort, figures that download, recipes to copy. It loads nothing from anywhere.

    chart = Chart("gamma", "Title", "What it shows, in words.", "Caption.", spec, data="layers")
    page = Page("Title", "Of what.", [Section("first", "Heading", [Prose("Text."), chart])], {"layers": frame})
    path.write_text(html_of(page))

`spec` is an Altair chart whose data is `alt.NamedData("layers")`: the page holds each frame once, a row per mark. All
that comes out of a frame or a text is escaped. A page with controls of its own has Fragments (Jinja templates) and a
script, which finds `page` as templates/page.js describes it.
"""

from sae_outliers.pages.blocks import (
    Block,
    Chart,
    Fragment,
    Listing,
    Page,
    Plot,
    Prose,
    Reading,
    Recipe,
    Section,
)
from sae_outliers.pages.render import html_of
from sae_outliers.pages.theme import INK, cursor_ring, tooltips

__all__ = [
    "INK",
    "Block",
    "Chart",
    "Fragment",
    "Listing",
    "Page",
    "Plot",
    "Prose",
    "Reading",
    "Recipe",
    "Section",
    "cursor_ring",
    "html_of",
    "tooltips",
]
