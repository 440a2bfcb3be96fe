"""The common style of all figures, colours of domains, and the axis of γ."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's palette, which the colour-blind can tell apart; the shapes say the same in print.
COLORS = {
    "language": "#0072B2",
    "vision": "#E69F00",
    "protein": "#009E73",
    "genomic": "#CC79A7",
    "biology": "#009E73",  # protein and genomic in one, in the published table
}
MARKERS = {"language": "o", "vision": "s", "protein": "^", "genomic": "D", "biology": "^"}
# of γ; viridis' yellow end is too faint for a line
COLORMAP = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 256)))
WIDE_RANGE = 5  # ratio of the largest to the smallest γ from which the axis is logarithmic
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # text stays text
}


def domain_color(domain: str) -> str:
    return COLORS.get(domain, "0.35")


def gamma_colors(gamma: pd.Series) -> dict[Any, Any]:
    """Return a colour for each value of γ, from the lowest on."""
    values = sorted(gamma.unique())
    return {value: COLORMAP(i / max(1, len(values) - 1)) for i, value in enumerate(values)}


def gamma_limits(gamma: pd.Series) -> tuple[float, float]:
    positive = gamma[gamma > 0]
    return 0.85 * float(positive.min()), 1.15 * float(positive.max())


def gamma_axis(axes: Axes, gamma: pd.Series, along: str = "x") -> None:
    """Make the axis logarithmic where γ spans a wide range, with plain numbers on the ticks."""
    low, high = gamma_limits(gamma)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axes.set(**{f"{along}lim": (low, high), f"{along}label": "γ = ‖μ‖ / ‖σ‖"})
    if high / low > WIDE_RANGE:
        axes.set(**{f"{along}scale": "log"})
        steps = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5) if high / low < 1000 else (1,)
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        axis.set_ticks([s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high])
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
