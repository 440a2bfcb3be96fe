"""Death at initialisation against γ."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import MARKERS, STYLE, domain_color, gamma_axis, gamma_limits
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import measured_once
from sae_outliers.stats import theory


@figure("gamma_vs_death", "natural", ("dead_pct_init_topk", "dead_pct_init_relu", "n_eval", "n_features", "k"))
def gamma_vs_death(inputs: Inputs) -> Figure | None:
    """Draw the layers with centering=off."""
    records = inputs.natural
    layers = measured_once(records[(records["centering"] == "off") & records["gamma"].notna()])
    return draw(layers) if len(layers) else None


@mpl.rc_context(STYLE)
def draw(layers: pd.DataFrame) -> Figure:
    """Draw death at initialisation against γ, a point per layer, under the closed forms: TopK left, ReLU right."""
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
            c=domain_color(str(domain)),
            marker=MARKERS.get(str(domain), "o"),
            alpha=0.65,
            linewidths=0,
            label=str(domain),
            zorder=3,
        )


def _theory_curves(axes: Axes, layers: pd.DataFrame, name: str) -> None:
    """Draw the closed forms at the records' sizes; one curve for each set of sizes where records are mixed."""
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
