"""Figures of recovery: what dies at initialisation and comes back, by condition, bias and planted γ."""

from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from sae_outliers.analysis.figures import MEASURES, STYLE, WIDE_RANGE, curves_panel, gamma_axis, gamma_limits
from sae_outliers.analysis.recovery import Trained, by_model, recovery
from sae_outliers.analysis.tables import Floats

NAMES = ("recovery_bars", "recovery_against_bias", "recovery_time", "planted_curves")
# condition -> colour (Okabe and Ito), line style, marker
LOOKS: dict[str, tuple[str, Any, str]] = {
    "TopK": ("#0072B2", "-", "o"),
    "+ AuxK": ("#E69F00", "-.", "s"),
    "+ fast b_dec": ("#D55E00", (0, (4, 1, 1, 1, 1, 1)), "P"),
    "+ centering": ("#009E73", "--", "D"),
    "+ whitening": ("#CC79A7", ":", "v"),
}
MODELS_ACROSS = 7  # groups of bars side by side
PANELS_ACROSS = 5  # small panels side by side
FARTHEST = 1.5
DEATHS = {"topk": "TopK", "relu": "ReLU"}
DEATH_MEASURES = ("dead_pct_relu", "dead_pct_topk")
COLORMAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 256)))  # its yellow end is too faint for a line
NATURAL, PLANTED = "o", "^"  # markers


def all_figures(trained: Trained) -> Iterator[tuple[str, Figure]]:
    """Those for which there is something to draw."""
    table = recovery(trained.runs)
    if len(table):
        yield "recovery_bars", recovery_bars(by_model(table))
    runs = trained.runs[trained.runs["condition"].isin(LOOKS)]
    timed = runs[runs["planted_gamma"].notna() & runs["half_topk"].notna()]
    curves = trained.curves
    if curves.empty:
        return
    curves = curves[curves["condition"].isin(LOOKS)]
    off = curves[curves["centering"] == "off"]
    if len(off):
        yield "recovery_against_bias", recovery_against_bias(off)
    if len(timed):
        yield "recovery_time", recovery_time(timed)
    if curves["planted_gamma"].notna().any():
        yield "planted_curves", planted_curves(curves[curves["planted_gamma"].notna()])


# --- by condition ---------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def recovery_bars(models: pd.DataFrame) -> Figure:
    """For each model and condition, an outlined bar for death at initialisation and a solid one for the end.

    `models` is `recovery.by_model`. The number above a bar is that of the end; a condition without one was not run.
    """
    models = models.sort_values("γ", ignore_index=True)
    across = min(MODELS_ACROSS, len(models))
    down = -(-len(models) // across)
    figure = Figure(figsize=(max(4.4, 1.05 * across + 0.6), 2.0 * down + 0.8), layout="constrained")
    grid = figure.subplots(down, 1, sharey=True, squeeze=False)
    for row, axes in enumerate(grid.flat):
        _bars(axes, models.iloc[row * across : (row + 1) * across])
        axes.set(xlim=(-0.55, across - 0.45), ylim=(0, 110))
    figure.supylabel("features dead by TopK (%)", fontsize=9)
    figure.legend(handles=_bar_keys(models), loc="outside upper center", ncols=6 if across > 5 else 3)
    return figure


def _bars(axes: Axes, models: pd.DataFrame) -> None:
    shown = [condition for condition in LOOKS if f"{condition} end" in models]
    width = 0.8 / len(shown)
    for number, condition in enumerate(shown):
        color = LOOKS[condition][0]
        init, end = models[f"{condition} init"], models[f"{condition} end"]
        x = np.arange(len(models)) + (number - (len(shown) - 1) / 2) * width
        axes.bar(x, init, 0.84 * width, color=color, alpha=0.18)
        axes.bar(x, end, 0.84 * width, color=color)
        axes.bar(x, init, 0.84 * width, facecolor="none", edgecolor=_dark(color), lw=0.7)
        for place, height, percent in zip(x, np.maximum(init, end), end, strict=True):
            if not np.isnan(percent):
                axes.annotate(
                    f"{percent:.0f}", (place, height), (0, 1.5), textcoords="offset points", ha="center", fontsize=6
                )
    axes.set_xticks(range(len(models)), [_label(row) for row in models.to_dict("records")], fontsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def _dark(color: str) -> tuple[float, ...]:
    return tuple(0.6 * part for part in to_rgb(color))


def _label(model: dict[Any, Any]) -> str:
    name = fill(model["model"].replace("_", "_ "), 17).replace("_ ", "_")  # underscores, too, are places to break
    return f"{name}\n{model['layers']}\nγ {model['γ']:.2g}"


def _bar_keys(models: pd.DataFrame) -> list[Patch]:
    shown = [condition for condition in LOOKS if f"{condition} end" in models]
    keys = [Patch(facecolor=LOOKS[condition][0], label=condition) for condition in shown]
    outlined = Patch(facecolor="0.9", edgecolor="0.3", lw=0.7, label="at initialisation")
    return [*keys, outlined, Patch(facecolor="0.45", label="after training")]


# --- against the bias -----------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def recovery_against_bias(curves: pd.DataFrame) -> Figure:
    """Death against how far b_dec still is from the mean, a line per run without centering, γ as its colour.

    Training goes to the right; a marker stands at its end. Where γ is small, b_dec may go far beyond the mean: what
    is farther than FARTHEST is cut off.
    """
    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    low, high = gamma_limits(curves["gamma"])
    norm = (LogNorm if high / low > WIDE_RANGE else Normalize)(low, high)
    curves = curves.sort_values(["run_dir", "tokens"])
    runs = curves.drop_duplicates("run_dir")
    colors = [COLORMAP(norm(gamma)) for gamma in runs["gamma"]]
    starts = np.flatnonzero(~curves["run_dir"].duplicated())
    for axes, (death, name) in zip(panels, DEATHS.items(), strict=True):
        points = curves[["b_dec_distance", f"dead_pct_{death}"]].to_numpy(float)
        _bias_lines(axes, np.split(points, starts[1:]), runs, colors)
        axes.set(title=f"Dead by {name}", ylim=(-3, 103), xlabel="‖b_dec - μ‖ / ‖μ‖")
        near, far = curves["b_dec_distance"].min(), min(curves["b_dec_distance"].max(), FARTHEST)
        axes.set_xlim(far + 0.04 * (far - near), near - 0.04 * (far - near))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylabel("features (%)")
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, COLORMAP), ax=panels, aspect=30, pad=0.01)
    gamma_axis(bar.ax, curves["gamma"], along="y")
    figure.legend(handles=_bias_keys(curves), loc="outside upper center", ncols=4)
    return figure


def _bias_lines(axes: Axes, paths: Sequence[Floats], runs: pd.DataFrame, colors: Sequence[Any]) -> None:
    """A path [points, 2] for each of `runs`: one collection, for single lines by the thousand are slow."""
    styles = [LOOKS[condition][1] for condition in runs["condition"]]
    axes.add_collection(LineCollection(paths, colors=colors, linestyles=styles, linewidths=1.2))
    ends, natural = np.array([path[-1] for path in paths]), runs["planted_gamma"].isna().to_numpy()
    for marker, mine in ((NATURAL, natural), (PLANTED, ~natural)):
        of_these = [color for color, chosen in zip(colors, mine, strict=True) if chosen]
        axes.scatter(ends[mine, 0], ends[mine, 1], s=16, c=of_these, marker=marker, zorder=2)


def _bias_keys(curves: pd.DataFrame) -> list[Line2D]:
    conditions = [condition for condition in LOOKS if condition in set(curves["condition"])]
    keys = [Line2D([], [], color="0.2", ls=LOOKS[condition][1], lw=1.2, label=condition) for condition in conditions]
    planted = curves["planted_gamma"].notna()
    ends = {"natural γ": (NATURAL, ~planted), "planted γ": (PLANTED, planted)}
    marked = [(label, marker) for label, (marker, rows) in ends.items() if rows.any()]
    return keys + [Line2D([], [], color="0.2", ls="", marker=marker, ms=4, label=label) for label, marker in marked]


# --- how long recovery takes ----------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def recovery_time(runs: pd.DataFrame) -> Figure:
    """Training tokens to half the dead against planted γ: a row per source layer, TopK left, ReLU right.

    A run in which nothing dies has no point; one that does not come to half has an upward triangle at its end.
    """
    sources = list(runs.groupby(["model", "layer"]))
    figure = Figure(figsize=(7.4, 2.3 * len(sources) + 0.7), layout="constrained")
    grid = figure.subplots(len(sources), 2, sharex=True, sharey="row", squeeze=False)
    for row, ((model, layer), mine) in zip(grid, sources, strict=True):
        for axes, (death, name) in zip(row, DEATHS.items(), strict=True):
            gamma_axis(axes, runs["planted_gamma"])
            for condition, group in mine.groupby("condition"):
                _times(axes, group, f"half_{death}", str(condition))
            axes.set_title(fill(f"{model}, layer {layer}: dead by {name}", 44), fontsize=9)
            axes.set(xlabel="", ylim=(0, 1.1 * mine["tokens_trained"].max()))
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel("planted γ", fontsize=9)
    figure.supylabel("training tokens to half of the dead", fontsize=9)
    figure.legend(handles=_time_keys(runs), loc="outside upper center", ncols=5)
    return figure


def _times(axes: Axes, runs: pd.DataFrame, column: str, condition: str) -> None:
    color, style, marker = LOOKS[condition]
    reached = runs[np.isfinite(runs[column])]
    median = reached.groupby("planted_gamma")[column].median()
    axes.plot(median.index, median, c=color, ls=style, lw=1)
    axes.plot(reached["planted_gamma"], reached[column], c=color, ls="", marker=marker, ms=4.5)
    never = runs[np.isinf(runs[column])]
    if len(never):  # what has no place and is not clipped upsets the layout
        points = 4 * (list(LOOKS).index(condition) - 1.5)  # aside, for those of several conditions would coincide
        beside = axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        ends = never["planted_gamma"], never["tokens_trained"]
        axes.plot(*ends, c=color, ls="", marker="^", ms=6, mfc="none", clip_on=False, transform=beside)


def _time_keys(runs: pd.DataFrame) -> list[Line2D]:
    shown = [condition for condition in LOOKS if condition in set(runs["condition"])]
    keys = [Line2D([], [], color=c, ls=s, marker=m, ms=4.5, lw=1, label=n) for n in shown for c, s, m in [LOOKS[n]]]
    return [*keys, Line2D([], [], color="0.3", ls="", marker="^", ms=6, mfc="none", label="not within the training")]


# --- the two kinds of death over training ---------------------------------------------------------------


@mpl.rc_context(STYLE)
def planted_curves(curves: pd.DataFrame) -> Figure:
    """Dead by ReLU and by TopK over training: a panel per planted γ, each source layer on rows of its own."""
    sources = {
        f"{model}, layer {layer}": list(runs.groupby("planted_gamma"))
        for (model, layer), runs in curves.groupby(["model", "layer"])
    }
    most = max(map(len, sources.values()))
    across = -(-most // -(-most // PANELS_ACROSS))  # on as few rows as there must be, evenly
    rows = [
        [(source, *panel) for panel in panels[start : start + across]]
        for source, panels in sources.items()
        for start in range(0, len(panels), across)
    ]
    figure = Figure(figsize=(max(5.2, 1.7 * across + 0.6), 1.7 * len(rows) + 1.1), layout="constrained")
    grid = figure.subplots(len(rows), across, sharex=True, sharey=True, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, (source, gamma, runs) in zip(line, row, strict=False):
            curves_panel(axes, [(LOOKS[str(c)][1], group) for c, group in runs.groupby("condition")], DEATH_MEASURES)
            axes.set_title(f"{fill(source, 20)}\nγ = {gamma:g}", fontsize=8)
        for axes in line[len(row) :]:
            axes.set_axis_off()
    for column in grid.T:
        [axes for axes in column if axes.axison][-1].tick_params(labelbottom=True)
    grid[0, 0].set_ylim(-3, 103)
    figure.supxlabel("training tokens", fontsize=9)
    figure.supylabel("features (%)", fontsize=9)
    figure.legend(handles=_curve_keys(curves), loc="outside upper center", ncols=6 if across > 3 else 3)
    return figure


def _curve_keys(curves: pd.DataFrame) -> list[Line2D]:
    measures = [Line2D([], [], color=c, lw=w, label=label) for label, c, w in map(MEASURES.__getitem__, DEATH_MEASURES)]
    shown = [condition for condition in LOOKS if condition in set(curves["condition"])]
    return measures + [Line2D([], [], color="0.2", ls=LOOKS[name][1], lw=1.4, label=name) for name in shown]
