"""Death over training."""

from collections.abc import Iterable
from textwrap import fill
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from sae_outliers.analysis.conditions import centering_dashes
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import STYLE
from sae_outliers.analysis.inputs import Inputs

# column of curves.parquet -> label, colour, width (where lines coincide, the lower one still shows)
MEASURES = {
    "dead_pct_relu": ("dead by ReLU", "#D55E00", 2.6),
    "dead_pct_topk": ("dead by TopK", "#0072B2", 1.6),
    "dead_pct_window": ("not fired in the last W tokens", "#7F7F7F", 1.1),
}
MAX_ACROSS = 4  # panels side by side
MAX_LINES = 30  # of runs in a panel, of a measure and a centering


@figure("death_curves", "trained")
def death_curves(inputs: Inputs) -> Figure | None:
    """Draw the natural layers."""
    curves = inputs.trained.curves
    natural = curves[curves["planted_gamma"].isna()] if len(curves) else curves
    return draw(natural) if len(natural) else None


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame) -> Figure:
    """Draw death over training, a panel per model, SAE and revival: the colour is the measure, the dash the centering.

    `curves` holds the curves of all runs, with `run_dir`, `model`, `sae`, `revival` and `centering`. Where several
    layers of a model were trained, each run is a faint line and their median a strong one; instead of more than
    MAX_LINES lines there is a band that holds the middle 80 % of the runs.
    """
    drawn = curves[["run_dir", "model", "sae", "revival", "centering", "tokens", *MEASURES]]
    panels = {
        f"{model} ({sae})" if revival == "none" else f"{model} ({sae}, {revival})": runs
        for (model, sae), both in drawn.groupby(["model", "sae"])
        for revival, runs in sorted(both.groupby("revival"), key=lambda item: (item[0] != "none", item[0]))
    }
    across = min(MAX_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(5.2, 2.5 * across + 0.6), 2.2 * down + 1.1), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    dashes = centering_dashes(curves["centering"].unique())
    highest = max(10.0, float(curves[list(MEASURES)].max().max()))
    for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
        axes.set_ylim(-0.03 * highest, 1.05 * highest)  # in all; an axis that many panels share is slow
        axes.tick_params(labelleft=axes in grid[:, 0])
        curves_panel(axes, [(dashes[str(name)], group) for name, group in runs.groupby("centering")], MEASURES)
        axes.set_title(fill(title, 28), fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("training tokens", fontsize=9)
    figure.supylabel("features (%)", fontsize=9)
    figure.legend(handles=_curve_keys(dashes), loc="outside upper center", ncols=3)
    return figure


def curves_panel(axes: Axes, by_dash: Iterable[tuple[Any, pd.DataFrame]], measures: Iterable[str]) -> None:
    """Draw the `measures` of the runs that each line style stands for, and their median where they are several."""
    for dash, group in by_dash:
        points = group.set_index(["tokens", "run_dir"])
        for column in measures:
            _, color, width = MEASURES[column]
            by_run = points[column].unstack("run_dir")
            median = by_run.median(axis=1)
            if by_run.shape[1] > MAX_LINES:
                low, high = (by_run.quantile(q, axis=1) for q in (0.1, 0.9))
                axes.fill_between(by_run.index, low, high, color=color, alpha=0.15, lw=0)
            elif by_run.shape[1] > 1:
                axes.plot(by_run.index, by_run, c=color, ls=dash, lw=0.5, alpha=0.3)
            axes.plot(median.index, median, c=color, ls=dash, lw=width)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 400k, 2M


def _curve_keys(centerings: dict[str, Any]) -> list[Line2D]:
    """Return the measures in the first row of three, the centerings below; a legend fills its columns first."""
    measures = [Line2D([], [], color=c, lw=w, label=label) for label, c, w in MEASURES.values()]
    dashes = [Line2D([], [], color="0.2", ls=dash, lw=1.4, label=f"centering {c}") for c, dash in centerings.items()]
    blanks = [Line2D([], [], ls="", label=" ")] * (-len(dashes) % 3)
    keys = measures + dashes + blanks
    return [key for column in range(3) for key in keys[column::3]]
