"""Statistics of the tables: rank correlations with bootstrap intervals, AUC, and the time to half of the dead."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Pair = tuple[str, str]  # two columns

RESAMPLES = 2000
MIN_LAYERS = 5  # below this, a rank correlation says nothing
MIN_MODELS = 3  # below this, resampling whole models can give only a handful of different samples


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Return Spearman's ρ; NaN for fewer than MIN_LAYERS rows, or where one side is constant."""
    if len(x) < MIN_LAYERS or x.nunique() < 2 or y.nunique() < 2:
        return float("nan")
    from scipy.stats import spearmanr  # 0.6 s to load

    return float(spearmanr(x, y).statistic)


def bootstrap_spearman(
    rows: pd.DataFrame,
    pairs: Iterable[Pair],
    unit: pd.Series,
    min_units: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Pair, tuple[float, float]]:
    """Return 95 % percentile intervals of ρ for each pair of columns, from resamples of whole units.

    Resamples in which one side is constant have no ρ and are left out. NaN for fewer than `min_units` units, and
    where all resamples agree: those of perfectly ordered rows do, which says nothing of the uncertainty.
    """
    pairs = list(pairs)
    if unit.nunique() < min_units:
        return dict.fromkeys(pairs, (float("nan"), float("nan")))
    counts = draw_units(unit, resamples, seed)
    columns = dict.fromkeys(column for pair in pairs for column in pair)
    ranks = {column: weighted_ranks(rows[column].to_numpy(float), counts) for column in columns}
    return {(x, y): _interval(weighted_correlation(ranks[x], ranks[y], counts)) for x, y in pairs}


def draw_units(unit: pd.Series, resamples: int, seed: int) -> Floats:
    """Return how often each resample holds each row, `[resamples, rows]`; the rows of one unit go together."""
    codes, units = pd.factorize(unit)
    drawn = np.random.default_rng(seed).multinomial(len(units), np.full(len(units), 1 / len(units)), size=resamples)
    return drawn[:, codes].astype(np.float64)


def weighted_ranks(values: Floats, counts: Floats) -> Floats:
    """Return the average rank that each row has in each resample, `[resamples, rows]`, ties included.

    scipy ranks one sample at a time and would take minutes; rows are counted here instead of copied.
    """
    distinct, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.searchsorted(tie[order], np.arange(len(distinct)))
    held = np.add.reduceat(counts[:, order], starts, axis=1)  # rows of each distinct value in each resample
    return (np.cumsum(held, axis=1) - (held - 1) / 2)[:, tie]


def weighted_correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Return Pearson's correlation in each resample; NaN where a side is constant (ranks are exact in float64)."""
    total = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / total
    y = y - (counts * y).sum(axis=1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts * x * y).sum(axis=1) / np.sqrt((counts * x**2).sum(axis=1) * (counts * y**2).sum(axis=1))


def _interval(statistics: Floats) -> tuple[float, float]:
    defined = statistics[np.isfinite(statistics)]
    if not len(defined) or np.ptp(defined) < 1e-9:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return P(a positive scores above a negative), ties counted half (Mann-Whitney's U); NaN where a side is empty.

    scipy's mannwhitneyu ranks both sides and gives a p-value; here that takes longer than all else for many runs.
    """
    above, below = np.sort(positive), np.sort(negative)
    if not len(above) or not len(below) or np.isnan(above[-1]) or np.isnan(below[-1]):
        return float("nan")
    lower = np.searchsorted(below, above, "left").sum() + np.searchsorted(below, above, "right").sum()
    return float(lower / 2 / (len(above) * len(below)))


def time_to_half(time: ArrayLike, values: ArrayLike) -> float:
    """Return when `values` first are half of the first of them, linear between points.

    inf if never, NaN if there was nothing at first.
    """
    t, y = np.asarray(time, float), np.asarray(values, float)
    if not y[0] > 0:
        return float("nan")
    half = y[0] / 2
    reached = np.flatnonzero(y <= half)
    if not len(reached):
        return float("inf")
    i = reached[0]
    return float(t[i - 1] + (t[i] - t[i - 1]) * (y[i - 1] - half) / (y[i - 1] - y[i]))
