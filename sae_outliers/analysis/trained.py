"""Records of trained SAEs with what their runs left on disk: death curves, and the fate of every feature."""

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sae_outliers.analysis.conditions import b_dec_learning, condition_name, conditions_among
from sae_outliers.analysis.stats import auc, time_to_half
from sae_outliers.results.features import Fate
from sae_outliers.results.integrity import DIGESTS, damaged, verified
from sae_outliers.utils.cores import usable_cores

CURVE_OWNER = ["run_dir", "model", "layer", "sae", "revival", "centering", "condition", "gamma", "planted_gamma"]
MIN_DEAD = 10  # half of fewer features is a matter of chance


class Features(NamedTuple):
    """A summary of a run's features.

    Attributes:
        fates: int64 [3, 3], features by `Fate` at initialisation (row) and after training (column).
        alignment: the columns of the table `alignment` that are not the run's own.
    """

    fates: NDArray[np.int64]
    alignment: dict[str, float]


class Trained(NamedTuple):
    """Trained records, natural and planted (`planted_gamma` is NaN where natural), and their death curves.

    Attributes:
        runs: a row per record, with its `condition`, `half_topk` and `half_relu` in training tokens, `half_bias` in
            training steps, and `features`, a Features or None where they are not on disk.
        curves: a row per point of a run, with the columns CURVE_OWNER of its record and `gamma_left`, the γ of what
            its encoder multiplies: ‖μ - b_dec‖/‖σ‖, where nothing whitens; empty where no run has curves on disk.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame


def read_trained(records: pd.DataFrame) -> Trained:
    """Return the trained ones among `records`, in the order of model, layer, planted γ and condition."""
    runs = records[records["train_steps"] > 0]
    b_dec = map(b_dec_learning, runs["b_dec_lr"], runs["lr"], runs["freeze_b_dec"])
    kinds = zip(runs["sae"], runs["revival"], runs["centering"], b_dec, strict=True)
    runs = runs.assign(
        condition=[condition_name(*kind) for kind in kinds],
        planted_gamma=pd.to_numeric(runs["planted_gamma"]),  # of objects, where all are None
        tokens_trained=runs["train_steps"] * runs["train_batch_size"],
    )
    order = list(conditions_among(runs["condition"]))
    runs = runs.assign(_place=runs["condition"].map(order.index)).sort_values(
        ["model", "layer", "planted_gamma", "_place", "seed", "sae_seed"], na_position="first", ignore_index=True
    )
    with ThreadPoolExecutor(usable_cores()) as pool:  # reading and sorting release Python's lock
        features = list(pool.map(read_features, runs["run_dir"], _digests(runs)))
        curves = read_curves(runs, pool)
    runs = runs.assign(features=pd.Series(features, index=runs.index, dtype=object))
    return Trained(with_half_times(runs.drop(columns="_place"), curves), curves)


def read_curves(runs: pd.DataFrame, pool: Executor) -> pd.DataFrame:
    """Return the death curves of all runs that have theirs on disk, with the run that each belongs to."""
    read = pool.map(lambda run_dir, digests: _read(run_dir, "curves.parquet", digests), runs["run_dir"], _digests(runs))
    found = {run_dir: curve for run_dir, curve in zip(runs["run_dir"], read, strict=True) if curve}
    if not found:
        return pd.DataFrame()
    points = pa.concat_tables(found.values(), promote_options="permissive").to_pandas(ignore_metadata=True)
    of_run = runs[CURVE_OWNER].set_index("run_dir", drop=False).loc[list(found)]
    owners = of_run.take(np.repeat(np.arange(len(found)), [len(curve) for curve in found.values()]))
    curves = pd.concat([points, owners.reset_index(drop=True)], axis="columns")
    return curves.assign(gamma_left=curves["gamma"] * curves.get("b_dec_distance", np.nan))


def since_most_dead(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the points of each run from that on at which most of its features are dead by ReLU."""
    peak = curves.groupby("run_dir")["dead_pct_relu"].transform("idxmax")
    return curves[curves.index >= peak]


def read_features(run_dir: str, digests: Any = None) -> Features | None:
    """Return the summary of a run's features; None where the file is not on disk."""
    columns = ["fate_init", "fate_final", "alignment_init"]
    table = _read(run_dir, "features.parquet", digests, columns)
    if not table:
        return None
    before, after, alignment = (table[name].to_numpy() for name in columns)
    return Features(_count_fates(before, after), _predict_fates(before, after, alignment))


def _digests(runs: pd.DataFrame) -> list[Any]:
    return list(runs[DIGESTS]) if DIGESTS in runs else [None] * len(runs)


def _read(run_dir: str, name: str, digests: Any, columns: list[str] | None = None) -> pa.Table | None:
    """Return None where there is no such file. pandas takes ten times as long for these small files.

    Raises:
        ValueError: it is damaged (the path is named).
    """
    directory = Path(run_dir)
    try:
        with pq.ParquetFile(pa.BufferReader(verified(directory, name, digests))) as file:
            return file.read(columns, use_threads=False)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise damaged(directory / name, error) from error


def with_half_times(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Add `half_topk` and `half_relu` by `time_to_half`; NaN where fewer than MIN_DEAD were dead at first.

    Likewise `half_bias`, the steps until b_dec holds half of the mean; NaN where it began with some of it.
    """
    points = curves.groupby("run_dir").indices if len(curves) else {}
    found = {"half_bias": runs["run_dir"].map(_steps_to_half_of_the_mean(curves, points)).astype(float)}
    for death in ("topk", "relu"):
        columns = ["tokens", f"dead_pct_{death}"]
        curve = curves[columns].to_numpy(float) if len(curves) else np.empty((0, 2))
        times = {run_dir: time_to_half(*curve[rows].T) for run_dir, rows in points.items()}
        enough = enough_dead(runs[f"dead_pct_init_{death}"], runs["n_features"])
        found[f"half_{death}"] = runs["run_dir"].map(times).astype(float).where(enough)
    return runs.assign(**found)


def enough_dead(percent: pd.Series, n_features: pd.Series) -> pd.Series:
    """Return where so many of the features are dead that half of them tell something."""
    return (percent * n_features / 100).round() >= MIN_DEAD


def _steps_to_half_of_the_mean(curves: pd.DataFrame, points: Mapping[Any, Any]) -> dict[str, float]:
    if not {"step", "mean_in_bias"} <= set(curves):
        return {}
    curve = curves[["step", "mean_in_bias"]].to_numpy(float)
    began_without = (run for run in points.items() if abs(curve[run[1][0], 1]) < 0.01)
    return {run_dir: time_to_half(curve[rows, 0], 1 - curve[rows, 1]) for run_dir, rows in began_without}


def _count_fates(before: NDArray[np.int8], after: NDArray[np.int8]) -> NDArray[np.int64]:
    n = len(Fate)
    return np.bincount(n * before.astype(np.int64) + after, minlength=n * n).reshape(n, n)


def _predict_fates(
    before: NDArray[np.int8], after: NDArray[np.int8], alignment: NDArray[np.float32]
) -> dict[str, float]:
    """Measure how well pointing away from μ predicts death at initialisation, and that it lasts."""
    away = -alignment
    relu, topk, still = before == Fate.NEVER_POSITIVE, before != Fate.ALIVE, after != Fate.ALIVE
    return {
        "dead by ReLU": 100 * relu.mean(),
        "dead by TopK": 100 * topk.mean(),
        "recovered": 100 * (1 - still[topk].mean()) if topk.any() else float("nan"),
        "AUC dead by ReLU": auc(away[relu], away[~relu]),
        "AUC dead by TopK": auc(away[topk], away[~topk]),
        "AUC still dead": auc(away[topk & still], away[topk & ~still]),
    }
