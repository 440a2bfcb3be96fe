"""Lines over seeds: the median, and the range as a band."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sae_outliers.analysis.conditions import conditions_among


def line_over_seeds(axes: Axes, x: pd.Series, y: pd.Series, **look: Any) -> None:
    """Draw the median of y at each x, with a band from the least to the most where a value of x has several."""
    values = y.groupby(x)
    median = values.median()
    (line,) = axes.plot(median.index, median, **{"lw": 1.3, **look})
    if values.size().max() > 1:
        band = values.min().to_numpy(), values.max().to_numpy()
        axes.fill_between(np.asarray(median.index), *band, color=line.get_color(), alpha=0.2, lw=0)


def line_per_condition(axes: Axes, runs: pd.DataFrame, x: str, y: str) -> None:
    """Draw column y over column x by `line_over_seeds` for each condition of the runs, in its looks, by its name."""
    for one in conditions_among(runs["condition"]).values():
        mine = runs[runs["condition"] == one.name]
        look = dict(c=one.color, ls=one.dash, marker=one.marker, ms=4.5, label=one.name)
        line_over_seeds(axes, mine[x], mine[y], **look)
