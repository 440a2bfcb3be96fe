"""The figures of the page as Altair charts, in the colours of the printed ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.figures.style import COLORMAP, COLORS, MARKERS, WIDE_RANGE, gamma_limits
from sae_outliers.analysis.report.data import BREAK
from sae_outliers.pages import INK, Plot, Reading, cursor_ring, tooltips

GAMMA_TITLE = "γ = ‖μ‖ / ‖σ‖"
SHAPES = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}  # matplotlib's marker -> Vega's
# matplotlib's names of line styles -> lengths in pixels
DASHES: dict[str, list[float]] = {
    "-": [1, 0],
    "--": [6, 3],
    "-.": [6, 3, 1, 3],
    ":": [1, 3],
}
OTHER = "#8a8f98"  # of a domain that has no colour
LIGHT_ENOUGH = 0.12  # 3:1 against a dark page, 6:1 against a white one
MANY = 300  # points, from where they are small
HEIGHT = 320
PRESENT = alt.expr("present")  # the conditions in a panel of death curves, which its legend has

WHO: dict[str, tuple[str, int | None]] = {"model": ("model", None), "layer": ("layer", 0)}
SAID_OF_LAYER = WHO | {
    "gamma": ("γ", 2),
    "dead_pct_init_topk": ("dead by TopK (%)", 1),
    "dead_pct_init_relu": ("dead by ReLU (%)", 1),
    "theory_pct_topk_small_gamma": ("closed form, small-γ (%)", 1),
    "theory_pct_relu": ("closed form ReLU (%)", 1),
    "effective_rank": ("effective rank", 1),
}


def said_of(rows: pd.DataFrame, order: tuple[str, ...], opens: str = "the layer's card") -> Reading:
    """Return the reading of layers: what of SAID_OF_LAYER the rows know."""
    return Reading(order, {name: told for name, told in SAID_OF_LAYER.items() if name in rows}, opens)


# --- scales that several share --------------------------------------------------------------------------


def domain_color(domains: Iterable[str]) -> alt.Color:
    names = sorted(set(domains))
    scale = alt.Scale(domain=names, range=[readable(COLORS.get(name, OTHER)) for name in names])
    return alt.Color("domain:N", scale=scale, title=None)


def domain_shape(domains: Iterable[str]) -> alt.Shape:
    names = sorted(set(domains))
    scale = alt.Scale(domain=names, range=[SHAPES[MARKERS.get(name, "o")] for name in names])
    return alt.Shape("domain:N", scale=scale, title=None)


def condition_color(names: Iterable[str], **legend: Any) -> alt.Color:
    known = conditions_among(names).values()
    scale = alt.Scale(domain=[one.name for one in known], range=[readable(one.color) for one in known])
    return alt.Color("condition:N", scale=scale, legend=alt.Legend(title=None, symbolType="stroke", **legend))


def condition_dash(names: Iterable[str], **legend: Any) -> alt.StrokeDash:
    known = conditions_among(names).values()
    scale = alt.Scale(domain=[one.name for one in known], range=[dash(one.dash) for one in known])
    return alt.StrokeDash("condition:N", scale=scale, legend=alt.Legend(title=None, symbolType="stroke", **legend))


def dash(style: Any) -> list[float]:
    """Return matplotlib's line style, a name or (offset, lengths in line widths), in pixels."""
    return DASHES[style] if isinstance(style, str) else [2.0 * length for length in style[1]]


def readable(color: str) -> str:
    """Return a colour, lightened as far as it must be to be seen in the dark: a relative luminance of LIGHT_ENOUGH."""
    rgb = np.array(to_rgb(color))
    for white in np.linspace(0, 1, 21):
        mixed = rgb + white * (1 - rgb)
        linear = np.where(mixed <= 0.04045, mixed / 12.92, ((mixed + 0.055) / 1.055) ** 2.4)  # of sRGB
        if linear @ (0.2126, 0.7152, 0.0722) >= LIGHT_ENOUGH:
            break
    return to_hex(mixed)


def is_wide(gamma: pd.Series) -> bool:
    """Whether γ spans so wide a range that its axis is logarithmic."""
    low, high = gamma_limits(gamma)
    return high / low > WIDE_RANGE


def gamma_scale(gamma: pd.Series) -> alt.Scale:
    return alt.Scale(type="log" if is_wide(gamma) else "linear", domain=list(gamma_limits(gamma)), nice=False)


def percent(field: str, title: str, most: float = 100) -> alt.Y:
    return alt.Y(f"{field}:Q", scale=alt.Scale(domain=[0, most]), title=title)


def most_of(*columns: pd.Series) -> float:
    """Return the end of an axis of percentages: 100, or less where all are so small that nothing would be seen."""
    largest = max(float(column.max()) for column in columns)
    return next((end for end in (1.0, 2.0, 5.0, 10.0, 20.0) if largest <= end), 100.0)


def points(data: str, rows: pd.DataFrame) -> alt.Chart:
    size, opacity = (65, 0.75) if len(rows) <= MANY else (35, 0.55)
    return alt.Chart(alt.NamedData(data)).mark_point(filled=True, size=size, opacity=opacity, cursor="pointer")


# --- layers ---------------------------------------------------------------------------------------------


def gamma_against_death(data: str, forms: str, rows: pd.DataFrame, death: str, reading: Reading) -> Plot:
    """Draw death at initialisation by `death` (TopK or ReLU) against γ, under the closed forms."""
    column = f"dead_pct_init_{death.lower()}"
    x = alt.X("gamma:Q", scale=gamma_scale(rows["gamma"]), title=GAMMA_TITLE, axis=alt.Axis(format="~g", tickCount=8))
    y = percent(column, f"dead by {death} at initialisation (%)", most_of(rows[column]))
    marks = points(data, rows).encode(
        x, y, domain_color(rows["domain"]), domain_shape(rows["domain"]), tooltip=tooltips(reading.says)
    )
    lines = alt.Chart(alt.NamedData(forms)).mark_line(stroke=INK, strokeWidth=1.5, clip=True)
    names = ["closed form", "small-γ threshold"] if death == "TopK" else ["closed form"]
    drawn = lines.transform_filter(alt.datum.death == death).encode(
        alt.X("gamma:Q"),
        alt.Y("percent:Q"),
        alt.StrokeDash(
            "form:N",
            scale=alt.Scale(domain=names, range=[[1, 0], [5, 4]][: len(names)]),
            legend=alt.Legend(title=None, symbolType="stroke", symbolStrokeColor=INK),
        ),
        detail="sizes:N",
    )
    return alt.layer(marks, drawn, cursor_ring(data, [x, y])).properties(height=HEIGHT)


def closed_form_beside_measured(data: str, rows: pd.DataFrame, predicted: str, death: str, reading: Reading) -> Plot:
    """Draw a closed form's percentage (column `predicted`) against the measured one, and where both are the same."""
    measured = f"dead_pct_init_{death.lower()}"
    most = most_of(rows[predicted], rows[measured])
    x = alt.X(f"{predicted}:Q", scale=alt.Scale(domain=[0, most]), title="closed form (%)")
    y = percent(measured, f"measured: dead by {death} (%)", most)
    marks = points(data, rows).encode(
        x, y, domain_color(rows["domain"]), domain_shape(rows["domain"]), tooltip=tooltips(reading.says)
    )
    ends = [{"a": value, "b": value} for value in (0.0, most)]
    same = alt.Chart(alt.InlineData(ends)).mark_line(stroke=INK, strokeWidth=1)
    return alt.layer(same.encode(alt.X("a:Q"), alt.Y("b:Q")), marks, cursor_ring(data, [x, y])).properties(
        height=HEIGHT
    )


def gamma_by_depth(data: str, labels: str | None, rows: pd.DataFrame, reading: Reading) -> Plot:
    """Draw γ at each relative depth, a line per model, with its name beside it where `labels` are given."""
    x = alt.X(
        "depth:Q",
        scale=alt.Scale(domain=[0, 1]),
        title="relative depth (layer / last layer)",
        axis=alt.Axis(tickCount=5),
    )
    y = alt.Y("gamma:Q", scale=gamma_scale(rows["gamma"]), title=GAMMA_TITLE, axis=alt.Axis(format="~g", tickCount=6))
    color = domain_color(rows["domain"])
    lines = (
        alt.Chart(alt.NamedData(data))
        .mark_line(strokeWidth=1.6)
        .encode(x, alt.Y("mean(gamma):Q"), color, detail="model:N")
    )
    marks = points(data, rows).encode(x, y, color, domain_shape(rows["domain"]), tooltip=tooltips(reading.says))
    layers = [lines, marks.mark_point(filled=True, size=30, opacity=1, cursor="pointer"), cursor_ring(data, [x, y])]
    if labels is not None:
        names = alt.Chart(alt.NamedData(labels)).mark_text(align="left", dx=9, fontSize=11, color=INK)
        layers.append(names.encode(x, alt.Y("place:Q"), text="model:N"))
        leaders = alt.Chart(alt.NamedData(labels)).mark_rule(strokeWidth=0.7, xOffset=2, x2Offset=8)
        layers.append(leaders.encode(x, alt.Y("gamma:Q"), color, x2="depth:Q", y2="place:Q"))
    return alt.layer(*layers).properties(height=420)


# --- trained SAEs ---------------------------------------------------------------------------------------


def death_curves(conditions: Iterable[str]) -> Plot:
    """Draw `value`, a kind of death in percent, over training tokens, a line per run; the page gives the rows."""
    names = list(conditions)
    base = alt.Chart(alt.NamedData("curve")).encode(
        alt.X("tokens:Q", title="training tokens", axis=alt.Axis(format="~s", tickCount=5)),
        percent("value", "features (%)"),
        condition_color(names, values=PRESENT),
    )
    told: Mapping[str, tuple[str, int | None]] = {
        "condition": ("condition", None),
        "seed": ("seed", 0),
        "tokens": ("tokens", 0),
        "value": ("features (%)", 1),
    }
    lines = base.mark_line(strokeWidth=1.8, clip=True).encode(condition_dash(names, values=PRESENT), detail="run:N")
    dots = base.mark_point(filled=True, size=90, opacity=0).encode(tooltip=tooltips(told))
    present = alt.param(name="present", value=names)
    return alt.layer(lines, dots).add_params(present).properties(height=240)


def recovery_bars(rows: pd.DataFrame) -> Plot:
    """Draw a solid bar for death after training and an outlined one for that at initialisation, by condition."""
    names, labels = list(conditions_among(rows["condition"])), list(dict.fromkeys(rows["label"]))
    told: Mapping[str, tuple[str, int | None]] = {
        "label": ("model", None),
        "condition": ("condition", None),
        "init": ("at initialisation (%)", 1),
        "end": ("after training (%)", 1),
    }
    lines = alt.Axis(labelLimit=0, labelExpr=f"split(datum.label, '{BREAK}')", ticks=False)
    base = alt.Chart(alt.NamedData("recovery")).encode(
        alt.Y("label:N", sort=labels, title=None, scale=alt.Scale(paddingInner=0.25), axis=lines),
        alt.YOffset("condition:N", sort=names),
        condition_color(names),
        tooltip=tooltips(told),
    )
    x = alt.X("init:Q", scale=alt.Scale(domain=[0, 100]), title="dead by TopK (%)", axis=alt.Axis(tickCount=5))
    pale = base.mark_bar(opacity=0.15).encode(x)
    outlined = base.mark_bar(filled=False, strokeWidth=1).encode(x)
    solid = base.mark_bar().encode(alt.X("end:Q"))
    height = 70 + len(labels) * max(36, 16 * len(names))
    return alt.layer(pale, outlined, solid).properties(height=height)


def planted(data: str, rows: pd.DataFrame) -> Plot:
    """Draw death after training (lines) and at initialisation (grey) against planted γ, by condition."""
    names = list(conditions_among(rows["condition"]))
    told: Mapping[str, tuple[str, int | None]] = {
        "condition": ("condition", None),
        "planted_gamma": ("planted γ", 2),
        "init": ("at initialisation (%)", 1),
        "end": ("after training (%)", 1),
    }
    x = alt.X(
        "planted_gamma:Q",
        scale=gamma_scale(rows["planted_gamma"]),
        title="planted γ",
        axis=alt.Axis(format="~g", tickCount=6),
    )
    base = alt.Chart(alt.NamedData(data)).encode(x)
    start = base.transform_filter(alt.datum.init > 0).mark_line(
        stroke=INK, strokeWidth=1, opacity=0.6, strokeDash=[2, 3]
    )
    started = start.encode(alt.Y("max(init):Q", scale=alt.Scale(domain=[0, 100]), title="features (%)"))
    y = percent("end", "features (%)")
    lines = base.mark_line(strokeWidth=1.8).encode(y, condition_color(names), condition_dash(names))
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(y, condition_color(names), tooltip=tooltips(told))
    return alt.layer(started, lines, dots).properties(height=260)


def bias_over_steps(data: str, rows: pd.DataFrame, column: str, title: str) -> Plot:
    """Draw a column of the curves over training tokens, a line per run, γ as colour, dotted where b_dec is frozen."""
    gammas = sorted(rows["planted_gamma"].unique())
    colors = [readable(to_hex(COLORMAP(0.2 + 0.6 * i / max(1, len(gammas) - 1)))) for i in range(len(gammas))]
    told: Mapping[str, tuple[str, int | None]] = {
        **WHO,
        "planted_gamma": ("planted γ", 2),
        "b_dec": ("b_dec", None),
        "tokens": ("tokens", 0),
        column: (title, 1),
    }
    base = alt.Chart(alt.NamedData(data)).encode(
        alt.X("tokens:Q", title="training tokens", axis=alt.Axis(format="~s", tickCount=5)),
        alt.Y(f"{column}:Q", title=title),
        alt.Color(
            "planted_gamma:O",
            scale=alt.Scale(domain=gammas, range=colors),
            legend=alt.Legend(title="planted γ", symbolType="stroke"),
        ),
    )
    frozen = alt.StrokeDash("b_dec:N", scale=alt.Scale(domain=["learns", "frozen"], range=[[1, 0], [2, 3]]))
    lines = base.mark_line(strokeWidth=1.6).encode(
        frozen.legend(title="b_dec", symbolType="stroke", symbolStrokeColor=INK), detail="run:N"
    )
    dots = base.mark_point(filled=True, size=60, opacity=0).encode(tooltip=tooltips(told))
    return alt.layer(lines, dots).properties(height=260)
