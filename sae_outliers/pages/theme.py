"""The looks that charts share, light and dark, and the parts of a chart that every one with points has."""

from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt

# The page sets this parameter, and the others of COLORS, as it is read in the light, in the dark or on paper.
INK = alt.expr("ink")
COLORS = {
    "light": {"ink": "#1c2330", "faint": "#5b6473", "line": "#e3e6ea", "paper": "#ffffff"},
    "dark": {"ink": "#e8ebf0", "faint": "#a3adbb", "line": "#303845", "paper": "#171b22"},
}
AT_ROW = "at_row"  # the parameter that holds the id of the row that the keyboard is on
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def _now(name: str) -> dict[str, str]:
    return {"expr": name}


CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": _now("faint"), "titleColor": _now("ink"), "gridColor": _now("line")},
        **{"domainColor": _now("line"), "tickColor": _now("line"), "labelFontSize": 12, "titleFontSize": 12},
        **{"titleFontWeight": "normal", "labelOverlap": True},
    },
    "legend": {
        **{"labelColor": _now("ink"), "titleColor": _now("ink"), "orient": "bottom", "labelFontSize": 12},
        **{"labelLimit": 0, "titleFontWeight": "normal", "columns": _now("columns"), "symbolType": "circle"},
        "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 6}},
    },
    "title": {"color": _now("ink")},
}


def themed(spec: dict[str, Any], with_cursor: bool) -> dict[str, Any]:
    """Return a Vega-Lite spec in the page's looks; `with_cursor`: that knows which row the keyboard is on."""
    params: list[dict[str, Any]] = [{"name": name, "value": color} for name, color in COLORS["light"].items()]
    params.append({"name": "columns", "value": 3})  # of legends, as many as there is room for
    if with_cursor:
        params.append({"name": AT_ROW, "value": None})
    return {
        **spec,
        "config": CONFIG,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [*params, *spec.get("params", [])],
    }


def tooltips(says: Mapping[str, tuple[str, int | None]]) -> list[alt.Tooltip]:
    """Return what hovering over a row tells: the title and the value of each column, to its decimals."""
    return [
        alt.Tooltip(column, type="nominal", title=title)
        if decimals is None
        else alt.Tooltip(column, type="quantitative", title=title, format=f",.{decimals}f")
        for column, (title, decimals) in says.items()
    ]


def cursor_ring(data: str, encodings: Iterable[Any]) -> alt.Chart:
    """Return the ring around the row that the keyboard is on, placed by the `encodings` of the points (x and y)."""
    ring = alt.Chart(alt.NamedData(data)).mark_point(size=220, stroke=INK, strokeWidth=2.5, filled=False, opacity=1)
    return ring.transform_filter(f"datum.id === {AT_ROW}").encode(*encodings)
