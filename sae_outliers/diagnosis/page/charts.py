"""The figures of the page as Altair charts."""

from collections.abc import Mapping
from typing import Any, Literal

import altair as alt
import pandas as pd

from sae_outliers.diagnosis.page.data import FATES, NAMES
from sae_outliers.pages import INK, Plot, Reading, cursor_ring, tooltips

# Okabe and Ito's palette, which the colour-blind can tell apart, and every colour of which is seen in the dark
CENTERING_COLORS = dict(zip(NAMES.values(), ("#0072B2", "#009E73", "#56B4E9", "#CC79A7"), strict=True))
FATE_COLORS = dict(zip(FATES, ("#D55E00", "#E69F00", "#56B4E9", "#0072B2"), strict=True))
VERDICT_COLORS = {"fine": "#009E73", "centre": "#E69F00", "whiten": "#CC79A7"}
VERDICT_SHAPES = {"fine": "circle", "centre": "square", "whiten": "diamond"}
OUTLIER, OTHER = "#D55E00", "#8a8f98"
HEIGHT = 300
FULL = 85  # percent, from where there is no room beside a bar
WIDE_RANGE = 5  # ratio of the largest to the smallest γ from which the axis is logarithmic

Says = Mapping[str, tuple[str, int | None]]

OF_LAYER = "the layer's evidence"
READINGS = {
    "gamma_by_layer": Reading(
        ("of", "layer"),
        {"layer": ("layer", 0), "of": ("activations", None), "gamma": ("γ", 2), "verdict": ("verdict", None)},
        OF_LAYER,
    ),
    "death_by_layer": Reading(
        ("centering", "layer"),
        {
            "layer": ("layer", 0),
            "centering": ("tokens", None),
            "topk": ("dead by TopK (%)", 1),
            "relu": ("dead by ReLU (%)", 1),
        },
        OF_LAYER,
    ),
    "centerings": Reading(
        (),
        {
            "centering": ("tokens", None),
            "topk": ("dead by TopK (%)", 1),
            "relu": ("dead by ReLU (%)", 1),
            "always_on": ("always on", 0),
            "gamma": ("γ", 2),
            "unseen": ("of the dead, more tokens would show alive, estimated (%)", 1),
        },
    ),
    "dimensions": Reading(
        ("ratio",),
        {"dimension": ("dimension", 0), "mean": ("μ", 4), "std": ("σ", 4), "ratio": ("|μ|/σ", 2)},
    ),
    "spectrum": Reading(
        ("rank",),
        {"rank": ("rank", 0), "eigenvalue": ("eigenvalue", 4), "explained": ("variance so far (%)", 1)},
    ),
    "fates": Reading(
        ("low",),
        {
            "fate": ("fate", None),
            "features": ("features", 0),
            "low": ("cosine from", 3),
            "high": ("to", 3),
        },
    ),
    "bias": Reading(
        ("lr",),
        {"lr": ("learning rate", 6), "steps": ("steps, estimated", 0), "within": ("law", None)},
    ),
}


def of_named(colors: Mapping[str, Any]) -> alt.Scale:
    return alt.Scale(domain=list(colors), range=list(colors.values()))


def layer_axis(rows: pd.DataFrame) -> alt.X:
    """Return the axis of layers, with whole numbers at its ticks."""
    first, last = int(rows["layer"].min()), int(rows["layer"].max())
    axis = alt.Axis(format="d", tickMinStep=1, tickCount=min(10, last - first + 1), grid=False)
    return alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(domain=[first, last], nice=False))


# --- over the layers of a model -------------------------------------------------------------------------


def gamma_by_layer(rows: pd.DataFrame) -> Plot:
    """Draw γ over the layers, a line for each way of taking the activations, points by verdict."""
    names = list(dict.fromkeys(rows["of"]))
    low, high = float(rows["gamma"].min()), float(rows["gamma"].max())
    wide = low > 0 and high / low > WIDE_RANGE
    ends = [0.85 * low, 1.15 * high] if wide else [0, 1.15 * high or 1]
    scale = alt.Scale(type="log" if wide else "linear", domain=ends, nice=False)
    x = layer_axis(rows)
    axis = alt.Axis(format="~g", tickCount=6, titlePadding=12)
    y = alt.Y("gamma:Q", scale=scale, title="γ = ‖μ‖ / ‖σ‖", axis=axis)
    dashes = alt.StrokeDash(
        "of:N",
        scale=alt.Scale(domain=names, range=[[1, 0], [5, 4], [1, 3]][: len(names)]),
        legend=alt.Legend(title="activations", symbolType="stroke", symbolStrokeColor=INK),
    )
    base = alt.Chart(alt.NamedData("gammas"))
    lines = base.mark_line(stroke=INK, strokeWidth=1.2, opacity=0.6).encode(x, y, dashes)
    present = {kind: VERDICT_COLORS[kind] for kind in VERDICT_COLORS if kind in set(rows["verdict"])}
    shapes = {kind: VERDICT_SHAPES[kind] for kind in present}
    points = base.mark_point(filled=True, size=65, opacity=1, cursor="pointer").encode(
        x,
        y,
        alt.Color("verdict:N", scale=of_named(present), title="verdict"),
        alt.Shape("verdict:N", scale=of_named(shapes), title="verdict"),
        tooltip=tooltips(READINGS["gamma_by_layer"].says),
    )
    return alt.layer(lines, points, cursor_ring("gammas", [x, y])).properties(height=HEIGHT)


def death_by_layer(rows: pd.DataFrame) -> Plot:
    """Draw dead by TopK (solid) and by ReLU (dotted) over the layers, a colour per centering."""
    x, color = layer_axis(rows), alt.Color("centering:N", scale=of_named(CENTERING_COLORS), title=None)
    y = alt.Y("topk:Q", scale=alt.Scale(domain=[0, end_of(rows["topk"])]), title="dead features (%)")
    base = alt.Chart(alt.NamedData("centerings"))
    relu = base.mark_line(strokeWidth=1.2, strokeDash=[1, 3]).encode(x, alt.Y("relu:Q"), color)
    topk = base.mark_line(strokeWidth=1.8).encode(x, y, color)
    points = base.mark_point(filled=True, size=35, opacity=1, cursor="pointer").encode(
        x, y, color, tooltip=tooltips(READINGS["death_by_layer"].says)
    )
    return alt.layer(relu, topk, points, cursor_ring("centerings", [x, y])).properties(height=HEIGHT)


def end_of(*columns: pd.Series) -> float:
    """Return the end of an axis of percentages: 100, or less where all are so small that nothing would be seen."""
    largest = max(float(column.max()) for column in columns)
    return next((end for end in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if largest <= end), 100.0)


# --- of a layer, whose rows the page gives, and where its axes end --------------------------------------------

ENDS = ("x_low", "x_high", "y_low", "y_high")


def between(axis: Literal["x", "y"], kind: Literal["linear", "log"]) -> alt.Scale:
    """Return the scale of an axis whose ends are parameters: a log scale may not find them out of an empty ring."""
    return alt.Scale(type=kind, domain=[alt.expr(f"{axis}_low"), alt.expr(f"{axis}_high")], nice=False)


def ended(plot: Plot, ends: Mapping[str, float] | None = None) -> Plot:
    """Return the plot with the ends of its axes as parameters: these, or those that the page gives."""
    return plot.properties(height=HEIGHT).add_params(*(alt.param(name=n, value=(ends or {}).get(n, 1)) for n in ENDS))


def centerings() -> Plot:
    """Draw a bar of dead features per centering, of which never positive ones are a part."""
    x = alt.X("relu:Q", scale=alt.Scale(domain=[0, 100]), title="features (%)", axis=alt.Axis(tickCount=5))
    axis = alt.Axis(labelLimit=0, ticks=False, labelExpr="split(datum.label, ' subtracted')[0]")
    y = alt.Y("centering:N", sort=list(NAMES.values()), title=None, axis=axis, scale=alt.Scale(paddingInner=0.35))
    colors = {name: FATE_COLORS[name] for name in FATES[:2]}
    legend = alt.Legend(title=None, symbolType="square")
    color = alt.Color("fate:N", scale=of_named(colors), legend=legend)
    base = alt.Chart(alt.NamedData("centerings")).encode(y, tooltip=tooltips(READINGS["centerings"].says))
    bars = base.mark_bar()
    first = bars.transform_calculate(fate=f"'{FATES[0]}'", zero="0").encode(alt.X("zero:Q"), alt.X2("relu"), color)
    second = bars.transform_calculate(fate=f"'{FATES[1]}'").encode(x, alt.X2("topk"), color)
    number = alt.Text("topk:Q", format=".1f")
    beside = base.transform_filter(alt.datum.topk < FULL).mark_text(align="left", dx=5, color=INK)
    inside = base.transform_filter(alt.datum.topk >= FULL).mark_text(align="right", dx=-5, color="#14181f")
    numbers = [one.encode(alt.X("topk:Q"), text=number) for one in (beside, inside)]
    ring = cursor_ring("centerings", [alt.X("topk:Q"), y])
    return alt.layer(first, second, *numbers, ring).properties(height=HEIGHT)


def dimensions() -> Plot:
    """Draw |μ| against σ of each dimension, on logarithms, those that stand out most by name."""
    axis = alt.Axis(format="~g", tickCount=5)
    x = alt.X("std:Q", scale=between("x", "log"), title="σ of the dimension", axis=axis)
    y = alt.Y("size:Q", scale=between("y", "log"), title="|μ| of the dimension", axis=axis)
    kinds = {"other": OTHER, "largest |μ|/σ": OUTLIER}
    shapes = {"other": "circle", "largest |μ|/σ": "diamond"}
    base = alt.Chart(alt.NamedData("dimensions"))
    is_other = alt.datum.kind == "other"
    points = base.mark_point(filled=True).encode(
        x,
        y,
        alt.Color("kind:N", scale=of_named(kinds), title=None),
        alt.Shape("kind:N", scale=of_named(shapes), title=None),
        size=alt.condition(is_other, alt.value(28), alt.value(90)),
        opacity=alt.condition(is_other, alt.value(0.6), alt.value(1)),
        tooltip=tooltips(READINGS["dimensions"].says),
    )
    equal = base.mark_line(clip=True, stroke=INK, strokeWidth=1, opacity=0.6).encode(x, alt.Y("std:Q"))
    names = base.mark_text(align="right", dx=-8, fontSize=11, color=INK).encode(x, y, text="label:N")
    return ended(alt.layer(equal, points, names, cursor_ring("dimensions", [x, y])))


def spectrum() -> Plot:
    """Draw the eigenvalues over their rank, on logarithms, and the effective rank."""
    axis = alt.Axis(format="~g", tickCount=5)
    x = alt.X("rank:Q", scale=between("x", "log"), title="rank", axis=axis)
    y = alt.Y("eigenvalue:Q", scale=between("y", "log"), title="eigenvalue", axis=axis)
    color = CENTERING_COLORS["as it is"]
    base = alt.Chart(alt.NamedData("spectrum"))
    line = base.mark_line(strokeWidth=1.4, stroke=color).encode(x, y)
    points = base.mark_point(filled=True, size=25, opacity=1, fill=color).encode(
        x, y, tooltip=tooltips(READINGS["spectrum"].says)
    )
    rule = alt.Chart(alt.NamedData("layers")).mark_rule(stroke=INK, strokeWidth=1, strokeDash=[4, 3])
    effective = rule.encode(alt.X("effective_rank:Q"))
    return ended(alt.layer(line, points, effective, cursor_ring("spectrum", [x, y])))


def fates(data: str, ends: Mapping[str, float] | None = None) -> Plot:
    """Draw a histogram of the features' alignment with μ, a colour per fate."""
    axis = alt.Axis(format="~g", tickCount=6)
    x = alt.X("low:Q", scale=between("x", "linear"), title="cos(encoder direction, μ)", axis=axis)
    y = alt.Y("below:Q", scale=between("y", "linear"), title="features", axis=alt.Axis(tickCount=5))
    color = alt.Color("fate:N", scale=of_named(FATE_COLORS), title=None, legend=alt.Legend(symbolType="square"))
    base = alt.Chart(alt.NamedData(data))
    bars = base.mark_rect(stroke=None).encode(
        x, alt.X2("high"), y, alt.Y2("top"), color, tooltip=tooltips(READINGS["fates"].says)
    )
    zero = alt.Chart(alt.InlineData([{"at": 0}])).mark_rule(stroke=INK, strokeWidth=1, opacity=0.5).encode(x="at:Q")
    ring = cursor_ring(data, [alt.X("low:Q"), alt.Y("top:Q")])
    return ended(alt.layer(bars, zero, ring), ends)


def bias() -> Plot:
    """Draw after how many steps b_dec would hold half of the mean, over the learning rate, on logarithms."""
    by_decade, short = alt.Axis(format="~e", values=[1e-5, 1e-4, 1e-3, 1e-2]), alt.Axis(format="~s", tickCount=5)
    x = alt.X("lr:Q", scale=between("x", "log"), title="learning rate", axis=by_decade)
    y = alt.Y("steps:Q", scale=between("y", "log"), title="steps (estimate)", axis=short)
    color = CENTERING_COLORS["as it is"]
    base = alt.Chart(alt.NamedData("bias"))
    beyond = base.mark_line(stroke=color, strokeWidth=1.4, strokeDash=[4, 4]).encode(x, y)
    within = base.transform_filter(alt.datum.within == "measured").mark_line(stroke=color, strokeWidth=2.5).encode(x, y)
    points = base.mark_point(filled=True, fill=color, opacity=1).encode(
        x,
        y,
        size=alt.condition("datum.default", alt.value(160), alt.value(25)),
        tooltip=tooltips(READINGS["bias"].says),
    )
    return ended(alt.layer(beyond, within, points, cursor_ring("bias", [x, y])))
