"""How death by ReLU goes back against the γ that b_dec leaves."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import COLORMAP, STYLE, WIDE_RANGE, gamma_axis, gamma_limits
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.trained import since_most_dead
from sae_outliers.stats.theory import dead_by_relu

LEAST = 0.05  # lines leave the figure below this γ
FEW_PCT = 1.0  # of the features: where no more have died, there is nothing to come back


@figure("gamma_left", "trained", ("gamma",), apart=("planted_gamma", "train_steps"))
def gamma_left(inputs: Inputs) -> Figure | None:
    """Draw the uncentered TopK runs whose b_dec learns."""
    runs, curves = inputs.trained
    if curves.empty:
        return None
    uncentered = (curves["sae"] == "topk") & (curves["centering"] == "off") & curves["gamma_left"].notna()
    shown = curves[uncentered & ~curves["condition"].str.endswith("frozen b_dec")]
    if not (shown["dead_pct_relu"] > FEW_PCT).any():
        return None
    n_eval = runs.loc[runs["run_dir"].isin(shown["run_dir"]), "n_eval"].unique()
    return draw(since_most_dead(shown), n_eval[0] if len(n_eval) == 1 else None)


@mpl.rc_context(STYLE)
def draw(curves: pd.DataFrame, n_eval: float | None) -> Figure:
    """Draw dead by ReLU against ‖μ - b_dec‖/‖σ‖, a panel per condition and a line per run, γ as its colour.

    Training goes to the right, a dot stands at its end. Beside it what an SAE at initialisation loses at such a γ,
    where all runs have one number of evaluation tokens.
    """
    conditions = list(conditions_among(curves["condition"]))
    low, high = gamma_limits(curves["gamma"])
    norm = (LogNorm if high / low > WIDE_RANGE else Normalize)(low, high)
    figure = Figure(figsize=(2.6 + 2.8 * len(conditions), 3.4), layout="constrained")
    panels = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
    left = curves["gamma_left"].clip(lower=LEAST)
    for axes, condition in zip(panels, conditions, strict=True):
        _lines(axes, curves[curves["condition"] == condition], norm)
        gamma_axis(axes, left)
        axes.invert_xaxis()
        axes.set(title=condition, ylim=(-3, 103), xlabel="γ left = ‖μ - b_dec‖ / ‖σ‖")
        if n_eval:
            gammas = np.geomspace(*gamma_limits(left), 200)
            axes.plot(gammas, 100 * dead_by_relu(gammas, int(n_eval)), c="0.3", ls="--", lw=1)
    panels[0].set_ylabel("features dead by ReLU (%)")
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, COLORMAP), ax=list(panels), aspect=30, pad=0.01)
    gamma_axis(bar.ax, curves["gamma"], along="y")
    figure.legend(handles=_keys(n_eval), loc="outside upper center", ncols=3 if len(conditions) > 1 else 1)
    return figure


def _lines(axes: Axes, curves: pd.DataFrame, norm: Normalize) -> None:
    """Draw a line for each run: one collection, for single lines by the thousand are slow."""
    starts = np.flatnonzero(~curves["run_dir"].duplicated())
    colors = [COLORMAP(norm(gamma)) for gamma in curves["gamma"].iloc[starts]]
    paths = np.split(curves[["gamma_left", "dead_pct_relu"]].to_numpy(float), starts[1:])
    axes.add_collection(LineCollection(paths, colors=colors, linewidths=1.2))
    ends = np.array([path[-1] for path in paths])
    axes.scatter(ends[:, 0], ends[:, 1], s=14, c=colors, zorder=2)


def _keys(n_eval: float | None) -> list[Line2D]:
    keys = [
        Line2D([], [], c="0.2", lw=1.2, label="in training, from the most dead on"),
        Line2D([], [], c="0.2", ls="", marker="o", ms=4, label="its end"),
    ]
    closed_form = Line2D([], [], c="0.3", ls="--", lw=1, label="at initialisation, by the closed form")
    return [*keys, closed_form] if n_eval else keys
