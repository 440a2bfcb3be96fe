"""How long recovery takes, by planted γ."""

from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import ScaledTranslation

from sae_outliers.analysis.conditions import Condition, conditions_among, place_of
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import STYLE, gamma_axis
from sae_outliers.analysis.inputs import Inputs

DEATHS = {"topk": "TopK", "relu": "ReLU"}


@figure("recovery_time", "trained")
def recovery_time(inputs: Inputs) -> Figure | None:
    """Draw the TopK runs of a planted γ that have their curves on disk."""
    runs = inputs.trained.runs
    timed = runs[(runs["sae"] == "topk") & runs["planted_gamma"].notna() & runs["half_topk"].notna()]
    return draw(timed) if len(timed) else None


@mpl.rc_context(STYLE)
def draw(runs: pd.DataFrame) -> Figure:
    """Draw training tokens to half the dead against planted γ: a row per source layer, TopK left, ReLU right.

    A run in which nothing dies has no point; one that does not come to half has an upward triangle at its end.
    """
    conditions = conditions_among(runs["condition"])
    sources = list(runs.groupby(["model", "layer"]))
    figure = Figure(figsize=(7.4, 2.3 * len(sources) + 0.7), layout="constrained")
    grid = figure.subplots(len(sources), 2, sharex=True, sharey="row", squeeze=False)
    for row, ((model, layer), mine) in zip(grid, sources, strict=True):
        for axes, (death, name) in zip(row, DEATHS.items(), strict=True):
            gamma_axis(axes, runs["planted_gamma"])
            for condition, group in mine.groupby("condition"):
                _times(axes, group, f"half_{death}", conditions[str(condition)])
            axes.set_title(fill(f"{model}, layer {layer}: dead by {name}", 44), fontsize=9)
            axes.set(xlabel="", ylim=(0, 1.1 * mine["tokens_trained"].max()))
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel("planted γ", fontsize=9)
    figure.supylabel("training tokens to half of the dead", fontsize=9)
    figure.legend(handles=_time_keys(runs), loc="outside upper center", ncols=5)
    return figure


def _times(axes: Axes, runs: pd.DataFrame, column: str, condition: Condition) -> None:
    color, style, marker = condition.color, condition.dash, condition.marker
    reached = runs[np.isfinite(runs[column])]
    median = reached.groupby("planted_gamma")[column].median()
    axes.plot(median.index, median, c=color, ls=style, lw=1)
    axes.plot(reached["planted_gamma"], reached[column], c=color, ls="", marker=marker, ms=4.5)
    never = runs[np.isinf(runs[column])]
    if len(never):  # what has no place and is not clipped upsets the layout
        points = 4 * (place_of(condition.name) - 1.5)  # aside, for those of several conditions would coincide
        beside = axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        ends = never["planted_gamma"], never["tokens_trained"]
        axes.plot(*ends, c=color, ls="", marker="^", ms=6, mfc="none", clip_on=False, transform=beside)


def _time_keys(runs: pd.DataFrame) -> list[Line2D]:
    keys = [
        Line2D([], [], color=one.color, ls=one.dash, marker=one.marker, ms=4.5, lw=1, label=one.name)
        for one in conditions_among(runs["condition"]).values()
    ]
    return [*keys, Line2D([], [], color="0.3", ls="", marker="^", ms=6, mfc="none", label="not within the training")]
