"""How long b_dec took to half of the mean, against the law."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sae_outliers.analysis.clock import predicted_steps, timed_runs
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import STYLE
from sae_outliers.analysis.inputs import EVERY, Inputs

LEAST_SPAN = 2.0  # between times closer than this there is no course to see, on logarithmic axes
SCALES = {"none": ("#0072B2", "o"), "sqrt_d": ("#E69F00", "s"), "unit": ("#009E73", "D")}


@figure("bias_clock", "trained", ("offset_max",), apart=EVERY)
def bias_clock(inputs: Inputs) -> Figure | None:
    """Draw the runs in which b_dec came to hold half of the mean."""
    runs = timed_runs(inputs.trained.runs)
    return draw(runs) if runs["half_bias"].max() >= LEAST_SPAN * runs["half_bias"].min() else None


@mpl.rc_context(STYLE)
def draw(runs: pd.DataFrame) -> Figure:
    """Draw the steps to half against `max|μ_i| / lr`, and against what `theory.bias_half_time` says of each run."""
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    by_ratio, by_law = figure.subplots(1, 2, sharey=True)
    law = predicted_steps(runs)
    for scale, (color, marker) in SCALES.items():
        mine = runs["input_scale"] == scale
        look = dict(c=color, marker=marker, ls="", ms=4.5, label=f"input_scale={scale}")
        if mine.any():
            by_ratio.plot((runs["offset_max"] / runs["lr"])[mine], runs["half_bias"][mine], **look)
            by_law.plot(law[mine], runs["half_bias"][mine], **look)
    ends = [runs["half_bias"].min(), runs["half_bias"].max()]
    by_law.plot(ends, ends, c="0.5", lw=1, ls="--", zorder=0)
    for axes, label in ((by_ratio, "max|μ_i| / lr"), (by_law, "theory.bias_half_time")):
        axes.set(xscale="log", yscale="log", xlabel=label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
    by_ratio.set_ylabel("steps until b_dec holds half of the mean")
    figure.legend(*by_ratio.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
