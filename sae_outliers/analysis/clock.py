"""The law of how long b_dec takes to half of the mean, fitted to trained runs: a product of powers.

The coefficients of `stats.theory.bias_half_time` come from `fit_law` on the runs in results/recovery/clock.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_outliers.stats.theory import bias_half_time

MIN_SETTINGS = 14  # below this, half of the runs say nothing of six coefficients


class Law(NamedTuple):
    """The steps are the factor times each quantity to the power of its exponent; quantities are columns of `logs`."""

    factor: float
    exponents: dict[str, float]

    def steps(self, runs: pd.DataFrame) -> NDArray[np.float64]:
        """Return the steps that the law predicts for each run."""
        powers = np.array(list(self.exponents.values()))
        return np.asarray(self.factor * np.exp(logs(runs)[list(self.exponents)] @ powers))


def timed_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the TopK runs without revival whose b_dec started without the mean and came to hold half of it.

    They are in ascending order of the steps that it took, `half_bias`.
    """
    plain = (runs["sae"] == "topk") & (runs["revival"] == "none") & (runs["offset_max"] > 0)
    return runs[plain & np.isfinite(runs["half_bias"])].sort_values("half_bias", ignore_index=True)


def logs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the logs of what the time depends on, a column for each quantity."""
    quantities = {
        "max|μ_i|": runs["offset_max"],
        "lr": runs["lr"],
        "γ": runs["gamma"],
        "batch size": runs["train_batch_size"],
        "n_features": runs["n_features"],
    }
    return pd.DataFrame({name: np.log(value.astype(float)) for name, value in quantities.items()})


def fit_law(runs: pd.DataFrame) -> Law:
    """Fit by least squares in logs; a quantity that does not vary has no exponent, and is part of the factor."""
    columns = logs(runs)
    varying = columns.loc[:, columns.nunique() > 1]
    design = np.column_stack([np.ones(len(runs)), varying])
    solution = np.linalg.lstsq(design, np.log(runs["half_bias"].to_numpy(float)), rcond=None)[0]
    return Law(float(np.exp(solution[0])), dict(zip(varying.columns, solution[1:].tolist(), strict=True)))


def settings(runs: pd.DataFrame) -> int:
    """Return how many runs differ in more than their seeds, which tell nothing of the exponents."""
    return len(logs(runs).round(2).drop_duplicates())


def predicted_steps(runs: pd.DataFrame) -> NDArray[np.float64]:
    """Return what `theory.bias_half_time` says of each run."""
    columns = ("offset_max", "lr", "gamma", "train_batch_size", "n_features")
    return bias_half_time(*(runs[name].to_numpy(float) for name in columns))


def halves(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return every second run, to fit a law on, and the others, to test it on."""
    return runs[::2], runs[1::2]
