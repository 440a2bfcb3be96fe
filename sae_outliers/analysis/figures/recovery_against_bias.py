"""Death against how far the SAE's bias is from the mean."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import COLORMAP, STYLE, WIDE_RANGE, gamma_axis, gamma_limits
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.stats import Floats

MAX_DISTANCE = 1.5
DEATHS = {"topk": "TopK", "relu": "ReLU"}
NATURAL, PLANTED = "o", "^"  # markers


@figure("recovery_against_bias", "trained", ("gamma",))
def recovery_against_bias(inputs: Inputs) -> Figure | None:
    """Draw the TopK runs without centering."""
    curves = inputs.trained.curves
    if curves.empty:
        return None
    off = curves[(curves["sae"] == "topk") & (curves["centering"] == "off") & curves["gamma"].notna()]
    return draw(off) if len(off) else None


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame) -> Figure:
    """Draw death against how far b_dec still is from the mean, a line per run without centering, γ as its colour.

    Training goes to the right; a marker stands at its end. Where γ is small, b_dec may go far beyond the mean: what
    is farther than MAX_DISTANCE is cut off.
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
        near, far = curves["b_dec_distance"].min(), min(curves["b_dec_distance"].max(), MAX_DISTANCE)
        axes.set_xlim(far + 0.04 * (far - near), near - 0.04 * (far - near))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_ylabel("features (%)")
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, COLORMAP), ax=panels, aspect=30, pad=0.01)
    gamma_axis(bar.ax, curves["gamma"], along="y")
    figure.legend(handles=_bias_keys(curves), loc="outside upper center", ncols=4)
    return figure


def _bias_lines(axes: Axes, paths: Sequence[Floats], runs: pd.DataFrame, colors: Sequence[Any]) -> None:
    """Draw a path [points, 2] for each of `runs`: one collection, for single lines by the thousand are slow."""
    known = conditions_among(runs["condition"])
    styles = [known[condition].dash for condition in runs["condition"]]
    axes.add_collection(LineCollection(paths, colors=colors, linestyles=styles, linewidths=1.2))
    ends, natural = np.array([path[-1] for path in paths]), runs["planted_gamma"].isna().to_numpy()
    for marker, mine in ((NATURAL, natural), (PLANTED, ~natural)):
        of_these = [color for color, chosen in zip(colors, mine, strict=True) if chosen]
        axes.scatter(ends[mine, 0], ends[mine, 1], s=16, c=of_these, marker=marker, zorder=2)


def _bias_keys(curves: pd.DataFrame) -> list[Line2D]:
    conditions = conditions_among(curves["condition"]).values()
    keys = [Line2D([], [], color="0.2", ls=one.dash, lw=1.2, label=one.name) for one in conditions]
    planted = curves["planted_gamma"].notna()
    ends = {"natural γ": (NATURAL, ~planted), "planted γ": (PLANTED, planted)}
    marked = [(label, marker) for label, (marker, rows) in ends.items() if rows.any()]
    return keys + [Line2D([], [], color="0.2", ls="", marker=marker, ms=4, label=label) for label, marker in marked]
