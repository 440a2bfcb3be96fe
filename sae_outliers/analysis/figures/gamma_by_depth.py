"""γ by relative depth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import STYLE, domain_color, gamma_axis
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables.models import natural_gammas


@figure("gamma_by_depth", "natural", ("gamma",))
def gamma_by_depth(inputs: Inputs) -> Figure | None:
    """Draw every layer once for each γ that it has."""
    return draw(natural_gammas(inputs.natural.dropna(subset="gamma")))


@mpl.rc_context(STYLE)
def draw(layers: pd.DataFrame) -> Figure:
    """Draw γ at each relative depth: a panel per domain, a named line per model, and the other domains in grey."""
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
        axes.plot(line["depth"], line["gamma"], c=domain_color(domain), lw=1.3, marker="o", ms=2)
    _name_lines(axes, mine.groupby("model").last().reset_index(), domain_color(domain))


def _name_lines(axes: Axes, ends: pd.DataFrame, color: str) -> None:
    """Write each model's name right of the axes, level with its last layer as far as others leave room."""
    ends = ends.sort_values("gamma")
    points = (axes.transScale + axes.transLimits).transform(ends[["depth", "gamma"]].to_numpy(float))
    for model, point, height in zip(ends["model"], points, spread(points[:, 1], gap=0.075), strict=True):
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


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Return the nearest places to ascending `heights` that keep `gap` between neighbours (isotonic regression)."""
    steps = gap * np.arange(len(heights))
    return isotonic_regression(heights - steps).x + steps
