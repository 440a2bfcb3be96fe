"""growth.png and stack.png: time and memory against each size, and what a stack saves, on logarithmic axes."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from sae_outliers.analysis.figures.style import STYLE
from tests.benchmarks.fresh import DEATH, TRAINING

LOOKS = {TRAINING: ("#D55E00", "o"), DEATH: ("#0072B2", "s")}  # two of Okabe and Ito's colours
PRODUCT_LOOK: dict[str, Any] = {"c": "0.45", "ls": "--", "marker": ".", "lw": 1.1, "label": "encoder's product alone"}
WEIGHTS_LOOK: dict[str, Any] = {"c": "0.45", "ls": ":", "lw": 1.3, "label": "the weights themselves (not counted)"}
STACK_LOOKS = {"stack_ratio": ("#D55E00", "o", "stacked"), "alone_ratio": ("#0072B2", "s", "one after the other")}


@mpl.rc_context(STYLE)
def growth(rows: pd.DataFrame) -> Figure:
    """A column per varied size; seconds per batch above, peak memory beyond data and weights below."""
    series = list(rows.groupby("varied", sort=False))
    figure = Figure(figsize=(2.7 * len(series) + 0.4, 5.4), layout="constrained")
    grid = figure.subplots(2, len(series), sharex="col", sharey="row", squeeze=False)
    for column, (varied, points) in enumerate(series):
        _panel(grid[0, column], points, str(varied), "seconds")
        _panel(grid[1, column], points, str(varied), "peak_extra_mb")
        grid[1, column].set_xlabel(str(varied))
    grid[0, 0].set_ylabel("seconds per batch")
    grid[1, 0].set_ylabel("peak extra memory (MB)")
    handles = {
        label: line for axes in grid[:, 0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2)
    return figure


def _panel(axes: Axes, points: pd.DataFrame, varied: str, measured: str) -> None:
    for task, line in points.groupby("task", sort=False):
        color, marker = LOOKS[str(task)]
        axes.plot(line[varied], line[measured], c=color, marker=marker, ms=4, lw=1.4, label=str(task))
    once = points[points["task"] == TRAINING]
    if measured == "seconds":
        axes.plot(once[varied], once["product_seconds"], **PRODUCT_LOOK)
    else:
        axes.plot(once[varied], once["weights_mb"], **WEIGHTS_LOOK)
    _logarithmic(axes, sorted(once[varied]))


@mpl.rc_context(STYLE)
def stacks(rows: pd.DataFrame) -> Figure:
    """A stack's step and its members' one after the other, in units of their product: over members, and over width."""
    small = rows[(rows["revival"] == "none") & (rows["batch"] == rows["batch"].min())]
    narrowest = small["d_model"].min()
    over_members, over_width = small[small["d_model"] == narrowest], small[small["d_model"] > narrowest]
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    by_members, by_width = figure.subplots(1, 2, sharey=True)
    _stack_panel(by_members, over_members, "members")
    _stack_panel(by_width, over_width, "d_model")
    by_members.set_xlabel(f"SAEs (d_model {narrowest}, n_features {over_members['n_features'].iloc[0]})")
    by_width.set_xlabel(f"d_model of {over_width['members'].iloc[0]} SAEs (n_features 8 times as many)")
    by_members.set_ylim(bottom=1)  # the product itself
    by_members.set_ylabel("time of a step, × the encoders' product")
    figure.legend(*by_members.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _stack_panel(axes: Axes, points: pd.DataFrame, varied: str) -> None:
    for measured, (color, marker, name) in STACK_LOOKS.items():
        for (threads, line), style in zip(points.groupby("threads"), ("-", "--"), strict=True):
            label = f"{name}, {threads} thread{'s' if threads != 1 else ''}"
            axes.plot(line[varied], line[measured], c=color, marker=marker, ls=style, ms=4, lw=1.4, label=label)
    _logarithmic(axes, sorted(set(points[varied])))


def _logarithmic(axes: Axes, places: list[int]) -> None:
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
