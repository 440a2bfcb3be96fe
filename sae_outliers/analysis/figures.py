"""Figures over records: pure functions from a DataFrame to a matplotlib Figure, and one writer."""

from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from sae_outliers.stats import theory
from sae_outliers.utils.files import atomic_write

# Okabe and Ito's palette, which the colour-blind can tell apart; the shapes say the same in print.
COLORS = {
    "language": "#0072B2",
    "vision": "#E69F00",
    "protein": "#009E73",
    "genomic": "#CC79A7",
    "biology": "#009E73",  # protein and genomic in one, in the published table
}
MARKERS = {"language": "o", "vision": "s", "protein": "^", "genomic": "D", "biology": "^"}
# column of curves.parquet -> label, colour, width (where lines coincide, the lower one still shows)
MEASURES = {
    "dead_pct_relu": ("dead by ReLU", "#D55E00", 2.6),
    "dead_pct_topk": ("dead by TopK", "#0072B2", 1.6),
    "dead_pct_window": ("not fired in the last W tokens", "#7F7F7F", 1.1),
}
LINES = {
    "off": "-",
    "on": "--",
    "geometric_median": "-.",
    "whiten": ":",
    "layernorm_center": (0, (5, 1, 1, 1, 1, 1)),
}
WIDE_RANGE = 5  # ratio of the largest to the smallest γ from which the axis is logarithmic
MOST_ACROSS = 4  # panels side by side
MOST_LINES = 30  # of runs in a panel, of a measure and a centering
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # text stays text
}


def _color(domain: str) -> str:
    return COLORS.get(domain, "0.35")


def write_figure(figure: Figure, name: str, directory: Path) -> None:
    """Write `<name>.png` (200 dpi) and `<name>.pdf` below `directory`."""
    with atomic_write(directory / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=200)
    figure.set_layout_engine("none")  # it is laid out now, which takes seconds where panels are many
    with atomic_write(directory / f"{name}.pdf") as path:
        figure.savefig(path, format="pdf", metadata={"CreationDate": None})  # same records, same bytes


# --- γ against death ------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def gamma_vs_death(layers: pd.DataFrame) -> Figure:
    """Death at initialisation against γ, a point per layer, under the closed forms: TopK left, ReLU right."""
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("TopK", "ReLU"), strict=True):
        _points(axes, layers, f"dead_pct_init_{name.lower()}")
        _theory_curves(axes, layers, name)
        gamma_axis(axes, layers["gamma"])
        axes.set(title=f"Dead by {name}", ylim=(-3, 103))
    panels[0].set_ylabel("features dead at initialisation (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handletextpad=0.4)
    return figure


def _points(axes: Axes, layers: pd.DataFrame, death: str) -> None:
    for domain, rows in layers.groupby("domain"):
        axes.scatter(
            rows["gamma"],
            rows[death],
            s=18,
            c=_color(str(domain)),
            marker=MARKERS.get(str(domain), "o"),
            alpha=0.65,
            linewidths=0,
            label=str(domain),
            zorder=3,
        )


def _theory_curves(axes: Axes, layers: pd.DataFrame, name: str) -> None:
    """The closed forms at the records' sizes; one curve for each set of sizes where records are mixed."""
    gamma = np.geomspace(*gamma_limits(layers["gamma"]), 400)
    for number, sizes in enumerate(layers[["n_eval", "n_features", "k"]].drop_duplicates().itertuples(index=False)):
        n_eval, n_features, k = (int(size) for size in sizes)
        label = "closed form" if not number else None
        if name == "ReLU":
            axes.plot(gamma, 100 * theory.dead_by_relu(gamma, n_eval), c="0.15", lw=1.3, label=label)
            continue
        small = theory.dead_by_topk_small_gamma(gamma, n_eval, n_features, k)
        axes.plot(gamma, 100 * theory.dead_by_topk(gamma, n_eval, n_features, k), c="0.15", lw=1.3, label=label)
        axes.plot(gamma, 100 * small, c="0.15", lw=1.1, ls=(0, (4, 2)), label=label and "small-γ threshold")


def gamma_limits(gamma: pd.Series) -> tuple[float, float]:
    positive = gamma[gamma > 0]
    return 0.85 * float(positive.min()), 1.15 * float(positive.max())


def gamma_axis(axes: Axes, gamma: pd.Series, along: str = "x") -> None:
    """Logarithmic where γ spans a wide range, with plain numbers on the ticks."""
    low, high = gamma_limits(gamma)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axes.set(**{f"{along}lim": (low, high), f"{along}label": "γ = ‖μ‖ / ‖σ‖"})
    if high / low > WIDE_RANGE:
        axes.set(**{f"{along}scale": "log"})
        steps = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5) if high / low < 1000 else (1,)
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        axis.set_ticks([s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high])
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# --- γ by depth -----------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def gamma_by_depth(layers: pd.DataFrame) -> Figure:
    """γ at each relative depth: a panel per domain, a named line per model, and the other domains in grey."""
    depth = layers["layer"] / layers["last_layer"].clip(lower=1)
    lines = layers.assign(depth=depth).groupby(["domain", "model", "depth"])["gamma"].mean()  # over seeds, if several
    rows = lines.reset_index().sort_values("depth")
    domains = sorted(rows["domain"].unique())
    across = min(2, len(domains))
    down = -(-len(domains) // across)
    figure = Figure(figsize=(3.9 * across + 0.4, 2.7 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, domain in zip(grid.flat, domains, strict=False):
        _depth_panel(axes, rows, domain)
    for axes in grid.flat[len(domains) :]:
        axes.set_axis_off()
        grid[-2, -1].tick_params(labelbottom=True)  # the panel above an empty place has the lowest x axis
    figure.supxlabel("relative depth (layer / last layer)", fontsize=9)
    figure.supylabel("γ = ‖μ‖ / ‖σ‖", fontsize=9)
    return figure


def _depth_panel(axes: Axes, rows: pd.DataFrame, domain: str) -> None:
    gamma_axis(axes, rows["gamma"], along="y")
    axes.set(xlim=(-0.02, 1.02), ylabel="", title=domain)
    for _, line in rows[rows["domain"] != domain].groupby("model"):
        axes.plot(line["depth"], line["gamma"], c="0.85", lw=0.8, zorder=1)
    mine = rows[rows["domain"] == domain]
    for _, line in mine.groupby("model"):
        axes.plot(line["depth"], line["gamma"], c=_color(domain), lw=1.3, marker="o", ms=2)
    _name_lines(axes, mine.groupby("model").last().reset_index(), _color(domain))


def _name_lines(axes: Axes, ends: pd.DataFrame, color: str) -> None:
    """Write each model's name right of the axes, level with its last layer as far as others leave room."""
    ends = ends.sort_values("gamma")
    points = (axes.transScale + axes.transLimits).transform(ends[["depth", "gamma"]].to_numpy(float))
    for model, point, height in zip(ends["model"], points, _spread(points[:, 1], gap=0.075), strict=True):
        axes.annotate(
            model,
            xy=(point[0], point[1]),
            xytext=(1.08, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=7.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.5,
                "alpha": 0.7,
                "shrinkA": 1,
                "relpos": (0, 0.5),
            },
        )


def _spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """The nearest places to ascending `heights` that keep `gap` between neighbours (isotonic regression)."""
    steps = gap * np.arange(len(heights))
    return isotonic_regression(heights - steps).x + steps


# --- death over training --------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def death_curves(curves: pd.DataFrame) -> Figure:
    """Death over training, a panel per model, SAE and revival: the colour is the measure, the dash the centering.

    `curves` holds the curves of all runs, with `run_dir`, `model`, `sae`, `revival` and `centering`. Where several
    layers of a model were trained, each run is a faint line and their median a strong one; instead of more than
    MOST_LINES lines there is a band that holds the middle 80 % of the runs.
    """
    drawn = curves[["run_dir", "model", "sae", "revival", "centering", "tokens", *MEASURES]]
    panels = {
        f"{model} ({sae})" if revival == "none" else f"{model} ({sae}, {revival})": runs
        for (model, sae), both in drawn.groupby(["model", "sae"])
        for revival, runs in sorted(both.groupby("revival"), key=lambda item: (item[0] != "none", item[0]))
    }
    across = min(MOST_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(5.2, 2.5 * across + 0.6), 2.2 * down + 1.1), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    highest = max(10.0, float(curves[list(MEASURES)].max().max()))
    for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
        axes.set_ylim(-0.03 * highest, 1.05 * highest)  # in all; an axis that many panels share is slow
        axes.tick_params(labelleft=axes in grid[:, 0])
        curves_panel(axes, [(_dash(str(name)), group) for name, group in runs.groupby("centering")], MEASURES)
        axes.set_title(fill(title, 28), fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("training tokens", fontsize=9)
    figure.supylabel("features (%)", fontsize=9)
    centerings = _in_order(curves["centering"])
    figure.legend(handles=_curve_keys(centerings), loc="outside upper center", ncols=3)
    return figure


def _dash(centering: str) -> Any:
    return LINES.get(centering, (0, (1, 3)))


def _in_order(centerings: pd.Series) -> list[str]:
    """Those present, in the order of LINES, and after them any that it does not know."""
    present = sorted(centerings.unique())
    return sorted(present, key=[*LINES, *present].index)


def curves_panel(axes: Axes, by_dash: Iterable[tuple[Any, pd.DataFrame]], measures: Iterable[str]) -> None:
    """The `measures` of the runs that each line style stands for, and their median where they are several."""
    for dash, group in by_dash:
        points = group.set_index(["tokens", "run_dir"])
        for column in measures:
            _, color, width = MEASURES[column]
            by_run = points[column].unstack("run_dir")
            median = by_run.median(axis=1)
            if by_run.shape[1] > MOST_LINES:
                low, high = (by_run.quantile(q, axis=1) for q in (0.1, 0.9))
                axes.fill_between(by_run.index, low, high, color=color, alpha=0.15, lw=0)
            elif by_run.shape[1] > 1:
                axes.plot(by_run.index, by_run, c=color, ls=dash, lw=0.5, alpha=0.3)
            axes.plot(median.index, median, c=color, ls=dash, lw=width)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 400k, 2M


def _curve_keys(centerings: list[str]) -> list[Line2D]:
    """The measures in the first row of three, the centerings below; a legend fills its columns first."""
    measures = [Line2D([], [], color=c, lw=w, label=label) for label, c, w in MEASURES.values()]
    dashes = [Line2D([], [], color="0.2", ls=_dash(c), lw=1.4, label=f"centering {c}") for c in centerings]
    blanks = [Line2D([], [], ls="", label=" ")] * (-len(dashes) % 3)
    keys = measures + dashes + blanks
    return [key for column in range(3) for key in keys[column::3]]
