"""How the bias takes the mean over from the features, at planted γ."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from sae_outliers.analysis.conditions import CONDITIONS
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import COLORMAP, STYLE
from sae_outliers.analysis.inputs import Inputs

PANELS = {
    "mean_in_bias": "Mean held by the bias (%)",
    "always_on": "Features always on",
    "dead_pct_relu": "Dead by ReLU (%)",
}
FREE, FROZEN = (CONDITIONS["none", "off", b_dec].name for b_dec in ("", "frozen b_dec"))
DASHES = {FREE: "-", FROZEN: ":"}


@figure("bias_takes_over", "trained", ("mean_in_bias",))
def bias_takes_over(inputs: Inputs) -> Figure | None:
    """Draw the uncentered TopK runs of planted γ without revival, b_dec free and frozen."""
    curves = inputs.trained.curves
    if curves.empty or "mean_in_bias" not in curves:
        return None
    shown = curves["condition"].isin(DASHES) & curves["planted_gamma"].notna() & curves["mean_in_bias"].notna()
    return draw(curves[shown]) if shown.any() else None


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame) -> Figure:
    """Draw a panel for each of PANELS over the steps: a line per run, γ as its colour, dotted where b_dec is frozen."""
    gammas = sorted(curves["planted_gamma"].unique())
    colors = {gamma: COLORMAP(i / max(1, len(gammas) - 1)) for i, gamma in enumerate(gammas)}
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(1, len(PANELS), sharex=True), PANELS.items(), strict=True):
        for (_, gamma, condition), run in curves.groupby(["run_dir", "planted_gamma", "condition"]):
            values = run[column] * (100 if column == "mean_in_bias" else 1)
            axes.plot(run["step"], values, c=colors[gamma], ls=DASHES[str(condition)], lw=1.3)
        axes.set(title=title, xlabel="training steps")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    present = curves["condition"].unique()
    keys = [Line2D([], [], c=color, label=f"γ = {gamma:g}") for gamma, color in colors.items()]
    words = {FREE: "b_dec learns", FROZEN: "b_dec frozen at 0"}
    keys += [Line2D([], [], c="0.2", ls=DASHES[name], label=words[name]) for name in DASHES if name in present]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    return figure
