"""How the bias takes the mean over from the features at planted γ, and which of the dead features come back."""

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from sae_outliers.analysis.conditions import CONDITIONS
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.over_seeds import line_over_seeds
from sae_outliers.analysis.figures.style import STYLE, gamma_colors
from sae_outliers.analysis.inputs import Inputs

Column = str | Callable[[pd.DataFrame], pd.Series]
BIAS: dict[str, Column] = {
    "Mean held by the bias (%)": lambda points: 100 * points["mean_in_bias"],
    "Features always on": "always_on",
    "Dead by ReLU (%)": "dead_pct_relu",
}
PATHWAYS: dict[str, Column] = {
    "Never positive: dead by ReLU (%)": "dead_pct_relu",
    "Positive, but never among the k largest (%)": lambda points: points["dead_pct_topk"] - points["dead_pct_relu"],
}
FREE, FROZEN = (CONDITIONS["none", "off", b_dec].name for b_dec in ("", "frozen b_dec"))
DASHES = {FREE: "-", FROZEN: ":"}
LONG = 4  # times as many steps as another run: the axis is logarithmic


@figure("bias_takes_over", "trained", ("mean_in_bias",), apart=("planted_gamma", "train_steps"))
def bias_takes_over(inputs: Inputs) -> Figure | None:
    """Draw the uncentered TopK runs of planted γ without revival, b_dec free and frozen."""
    return _figure(inputs, BIAS)


@figure("death_pathways", "trained", ("mean_in_bias",), apart=("planted_gamma", "train_steps"))
def death_pathways(inputs: Inputs) -> Figure | None:
    """Draw how many features of the same runs are dead on either way."""
    return _figure(inputs, PATHWAYS)


def _figure(inputs: Inputs, panels: dict[str, Column]) -> Figure | None:
    curves = of_the_bias(inputs.trained.curves)
    return None if curves.empty else draw(curves, panels)


def of_the_bias(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the points of uncentered TopK runs of planted γ without revival that say how much the bias holds."""
    if curves.empty or "mean_in_bias" not in curves:
        return pd.DataFrame()
    shown = curves["condition"].isin(DASHES) & curves["planted_gamma"].notna() & curves["mean_in_bias"].notna()
    return curves[shown]


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame, panels: dict[str, Column]) -> Figure:
    """Draw a panel for each of `panels` over the steps: a colour for each γ, dotted where b_dec is frozen."""
    colors = gamma_colors(curves["planted_gamma"])
    figure = Figure(figsize=(2.8 * max(len(panels), 3), 3.2), layout="constrained")
    for axes, (title, column) in zip(figure.subplots(1, len(panels), sharex=True), panels.items(), strict=True):
        for (gamma, condition), points in curves.groupby(["planted_gamma", "condition"]):
            values = points[column] if isinstance(column, str) else column(points)
            line_over_seeds(axes, points["step"], values, c=colors[gamma], ls=DASHES[str(condition)])
        axes.set(title=title, xlabel="training steps")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        _steps_axis(axes, curves)
    figure.legend(handles=_keys(curves, colors), loc="outside upper center", ncols=min(len(colors) + len(DASHES), 7))
    return figure


def _steps_axis(axes: Axes, curves: pd.DataFrame) -> None:
    ends = curves.groupby("run_dir")["step"].max()
    if ends.max() >= LONG * ends.min():
        axes.set(xscale="log", xlim=(curves.loc[curves["step"] > 0, "step"].min(), ends.max()))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _keys(curves: pd.DataFrame, colors: dict[float, Any]) -> list[Line2D]:
    present = curves["condition"].unique()
    words = {FREE: "b_dec learns", FROZEN: "b_dec frozen at 0"}
    keys = [Line2D([], [], c=color, label=f"γ = {gamma:g}") for gamma, color in colors.items()]
    return keys + [Line2D([], [], c="0.2", ls=DASHES[name], label=words[name]) for name in DASHES if name in present]
