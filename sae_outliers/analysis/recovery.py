"""Which dead features come back in training: tables over trained records, their curves and their features.

Pure functions, but for what is read through `run_dir`. Deaths are in percent (0-100) of features, times in training
tokens; an empty cell is a figure that was not measured or is not defined.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from sae_outliers.analysis.tables import Table
from sae_outliers.results.features import Fate

CONDITIONS = {  # revival, centering and speed of b_dec of a TopK SAE -> its name in the recovery study
    ("none", "off", False): "TopK",
    ("auxk", "off", False): "+ AuxK",
    ("none", "off", True): "+ fast b_dec",
    ("none", "on", False): "+ centering",
    ("none", "whiten", False): "+ whitening",
}
NAMES = {"topk": "TopK", "auxk": "AuxK", "on": "centering", "whiten": "whitening"}  # in all other conditions
FATES = {Fate.ALIVE: "alive", Fate.NEVER_SELECTED: "never selected", Fate.NEVER_POSITIVE: "never positive"}
SEVERITY = {"gamma": "γ", "effective_rank": "effective rank"}
BY_TOPK = {"dead_pct_init_topk": "init", "dead_pct_final_topk": "end", "half_topk": "tokens to half"}
BY_RELU = {"dead_pct_init_relu": "ReLU init", "dead_pct_final_relu": "ReLU end", "half_relu": "ReLU tokens to half"}
RUN = ["run_dir", "model", "layer", "sae", "revival", "centering", "condition", "gamma", "planted_gamma"]
FEWEST_DEAD = 10  # half of fewer is a matter of chance
GROUP = ["model", "layer", "planted_gamma", "condition"]


class Features(NamedTuple):
    """What the features of a run tell.

    Attributes:
        fates: int64 [3, 3], their number by `fates.Fate` at initialisation (row) and after training (column).
        alignment: the columns of the table `alignment` that are not the run's own.
    """

    fates: NDArray[np.int64]
    alignment: dict[str, float]


class Trained(NamedTuple):
    """Trained records, natural and planted (`planted_gamma` is NaN where natural), and their death curves.

    Attributes:
        runs: a row per record, with its `condition`, `half_topk` and `half_relu` in training tokens, and `features`,
            a Features or None where they are not on disk.
        curves: a row per point of a run, with the columns RUN of its record; empty where no run has curves on disk.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame


def read_trained(records: pd.DataFrame) -> Trained:
    """The trained ones among `records`, in the order of model, layer, planted γ and condition."""
    runs = records[records["train_steps"] > 0]
    kinds = zip(runs["sae"], runs["revival"], runs["centering"], runs["b_dec_lr"] > runs["lr"], strict=True)
    runs = runs.assign(
        condition=[condition_of(*kind) for kind in kinds],
        planted_gamma=pd.to_numeric(runs["planted_gamma"]),  # of objects, where all are None
        tokens_trained=runs["train_steps"] * runs["train_batch_size"],
    )
    order = [*CONDITIONS.values(), *sorted(set(runs["condition"]) - set(CONDITIONS.values()))]
    runs = runs.assign(_place=runs["condition"].map(order.index)).sort_values(
        ["model", "layer", "planted_gamma", "_place", "seed", "sae_seed"], na_position="first", ignore_index=True
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and sorting leave Python's lock
        features = list(pool.map(read_features, runs["run_dir"]))
        curves = read_curves(runs, pool)
    runs = runs.assign(features=pd.Series(features, index=runs.index, dtype=object))
    return Trained(with_half_times(runs.drop(columns="_place"), curves), curves)


def condition_of(sae: str, revival: str, centering: str, fast_b_dec: bool = False) -> str:
    """A name out of CONDITIONS, or for example `TopK + resample` or `relu + centering`."""
    if sae == "topk" and (revival, centering, fast_b_dec) in CONDITIONS:
        return CONDITIONS[revival, centering, fast_b_dec]
    parts = [sae, *([] if revival == "none" else [revival]), *([] if centering == "off" else [centering])]
    parts += ["fast b_dec"] if fast_b_dec else []
    return " + ".join(NAMES.get(part, part) for part in parts)


def read_curves(runs: pd.DataFrame, pool: Executor) -> pd.DataFrame:
    """The death curves of all runs that have theirs on disk, with who they belong to."""
    read = pool.map(lambda run_dir: _read(run_dir, "curves.parquet"), runs["run_dir"])
    found = {run_dir: curve for run_dir, curve in zip(runs["run_dir"], read, strict=True) if curve}
    if not found:
        return pd.DataFrame()
    points = pa.concat_tables(found.values(), promote_options="permissive").to_pandas(ignore_metadata=True)
    of_run = runs[RUN].set_index("run_dir", drop=False).loc[list(found)]
    owners = of_run.take(np.repeat(np.arange(len(found)), [len(curve) for curve in found.values()]))
    return pd.concat([points, owners.reset_index(drop=True)], axis="columns")


def read_features(run_dir: str) -> Features | None:
    """None where the run's file is not on disk."""
    columns = ["fate_init", "fate_final", "alignment_init"]
    table = _read(run_dir, "features.parquet", columns)
    if not table:
        return None
    before, after, alignment = (table[name].to_numpy() for name in columns)
    return Features(_count_fates(before, after), _tell_by_alignment(before, after, alignment))


def _read(run_dir: str, name: str, columns: list[str] | None = None) -> pa.Table | None:
    """None where there is no such file. pandas takes ten times as long for these small files."""
    try:
        with pq.ParquetFile(f"{run_dir}/{name}") as file:
            return file.read(columns, use_threads=False)
    except FileNotFoundError:
        return None


# --- how long recovery takes ----------------------------------------------------------------------------


def with_half_times(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """`half_topk` and `half_relu` by `tokens_to_half`; NaN where fewer than FEWEST_DEAD features were dead at first."""
    found = {}
    points = curves.groupby("run_dir").indices if len(curves) else {}
    for death in ("topk", "relu"):
        columns = ["tokens", f"dead_pct_{death}"]
        curve = curves[columns].to_numpy(float) if len(curves) else np.empty((0, 2))
        times = {run_dir: tokens_to_half(*curve[of].T) for run_dir, of in points.items()}
        dead = (runs[f"dead_pct_init_{death}"] * runs["n_features"] / 100).round()
        found[f"half_{death}"] = runs["run_dir"].map(times).astype(float).where(dead >= FEWEST_DEAD)
    return runs.assign(**found)


def tokens_to_half(tokens: ArrayLike, dead: ArrayLike) -> float:
    """When `dead` first is half of its first value, linear between points; inf if never, NaN if nothing was dead."""
    t, y = np.asarray(tokens, float), np.asarray(dead, float)
    if not y[0] > 0:
        return float("nan")
    half = y[0] / 2
    reached = np.flatnonzero(y <= half)
    if not len(reached):
        return float("inf")
    i = reached[0]
    return float(t[i - 1] + (t[i] - t[i - 1]) * (y[i - 1] - half) / (y[i - 1] - y[i]))


# --- tables ---------------------------------------------------------------------------------------------

DEAD = (
    "Percentage of features dead at initialisation (init) and after training (end) under the conditions of the "
    "recovery study, all with a TopK SAE (fast b_dec: b_dec has a higher learning rate than the rest); "
    "medians over runs, where seeds make several. A column without ReLU in its "
    "name is of dead by TopK, which includes dead by ReLU. Tokens to half: training tokens until the percentage first "
    "is half of what it was at init, linear between the points of the curve; blank where that takes more than the "
    f"tokens trained (for half of the runs), or where fewer than {FEWEST_DEAD} features were dead at init. Columns "
    "without any figure are left out."
)
NOTES = {
    "recovery": DEAD,
    "planted": (
        "Layers whose mean was rescaled, and nothing else changed, so that γ is a chosen number (planted γ). Closed "
        f"forms without centering: the paper's, and the small-γ threshold, which is ours. {DEAD}"
    ),
    "fates": (
        "What became of the features of each fate at initialisation: the percentage of them that is alive, never "
        "selected (positive on some evaluation token, but never among the k largest) or never positive (dead by ReLU) "
        "after training; a row adds up to 100. Fates that no feature had are left out; the features of several seeds "
        "are counted together."
    ),
    "alignment": (
        "How well the direction of a feature's encoder at initialisation tells its fate: area under the ROC curve "
        "(AUC) of -cos(W_enc, μ) for the features dead by ReLU at init against the others, likewise for those dead by "
        "TopK, and among these for the ones still dead by TopK after training against the recovered ones. Near 1: the "
        "dead features are those that point away from μ; 0.5: alignment says nothing; blank: one side is empty. A row "
        "per run; dead: percentage of features at init; recovered: of those dead by TopK, the percentage alive after "
        "training."
    ),
}


def tables(runs: pd.DataFrame) -> Iterator[Table]:
    """All of them, but for those that have no rows."""
    for make in (recovery, planted, fates, alignment):
        frame = make(runs)
        if len(frame):
            yield Table(make.__name__, frame, NOTES[make.__name__])


def recovery(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per natural layer, the conditions of the recovery study side by side."""
    natural = runs[runs["planted_gamma"].isna()]
    values = {**BY_TOPK, "half_relu": BY_RELU["half_relu"]}
    return _side_by_side(natural, ["domain", "model", "layer"], SEVERITY, values)


def planted(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per source layer and planted γ, as in `recovery`, with dead by ReLU and the closed forms."""
    rows = runs[runs["planted_gamma"].notna()].rename(columns={"planted_gamma": "planted γ"})
    theory = {
        "theory_pct_topk": "closed form TopK",
        "theory_pct_topk_small_gamma": "closed form TopK, small-γ threshold",
        "theory_pct_relu": "closed form ReLU",
    }
    uncentered = rows[list(theory)].where(rows["centering"] == "off")  # centering has a γ of its own
    return _side_by_side(
        rows.assign(**uncentered), ["model", "layer", "planted γ"], SEVERITY | theory, BY_TOPK | BY_RELU
    )


def _side_by_side(
    runs: pd.DataFrame, keys: list[str], once: dict[str, str], by_condition: dict[str, str]
) -> pd.DataFrame:
    """Medians over runs: of `once` (column -> name), and of `by_condition` for each condition of the study."""
    four = runs[runs["condition"].isin(CONDITIONS.values())]
    if four.empty:
        return pd.DataFrame()
    rows, conditions = four.groupby(keys), four.groupby([*keys, "condition"])
    frame = rows[list(once)].median().rename(columns=once)
    frame["runs"] = conditions.size().groupby(keys).max()
    frame["tokens trained"] = rows["tokens_trained"].max()
    medians = conditions[list(by_condition)].median().rename(columns=by_condition)
    for condition in CONDITIONS.values():
        if condition in set(four["condition"]):
            frame = frame.join(medians.xs(condition, level="condition").add_prefix(f"{condition} "))
    return frame.dropna(axis="columns", how="all").replace(np.inf, np.nan).reset_index()


def by_model(frame: pd.DataFrame) -> pd.DataFrame:
    """`recovery` with a row per model, medians over its layers; `layers` names the one, or says how many."""
    layers = frame.groupby("model")["layer"].agg(
        lambda of: f"layer {of.iloc[0]}" if len(of) == 1 else f"{len(of)} layers"
    )
    return frame.drop(columns="layer").groupby("model").median(numeric_only=True).assign(layers=layers).reset_index()


def fates(runs: pd.DataFrame) -> pd.DataFrame:
    """Fate at initialisation by fate at the end, in percent of the features of the first, for each condition."""
    rows = []
    for (model, layer, gamma, condition), group in runs.groupby(GROUP, dropna=False, sort=False)["features"]:
        counts = sum(features.fates for features in group if features is not None)
        if not np.any(counts):
            continue
        for before, row in zip(FATES.values(), counts, strict=True):
            if row.sum():
                at_end = {f"{after} at end": 100 * n / row.sum() for after, n in zip(FATES.values(), row, strict=True)}
                key = {"model": model, "layer": layer, "planted γ": gamma, "condition": condition}
                rows.append(key | {"at init": before, "features": int(row.sum())} | at_end)
    return pd.DataFrame(rows)


def _count_fates(before: NDArray[np.int8], after: NDArray[np.int8]) -> NDArray[np.int64]:
    n = len(FATES)
    return np.bincount(n * before.astype(np.int64) + after, minlength=n * n).reshape(n, n)


def alignment(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run that has its features on disk: how alignment with μ at initialisation tells a feature's fate."""
    own = {"model": "model", "layer": "layer", "planted_gamma": "planted γ", "gamma": "γ", "condition": "condition"}
    told = runs.dropna(subset="features")
    rows = told[list(own)].rename(columns=own).to_dict("records")
    return pd.DataFrame([row | features.alignment for row, features in zip(rows, told["features"], strict=True)])


def _tell_by_alignment(
    before: NDArray[np.int8], after: NDArray[np.int8], alignment: NDArray[np.float32]
) -> dict[str, float]:
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


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """P(a positive scores above a negative), ties counted half (Mann-Whitney's U); NaN where one side is empty.

    scipy's mannwhitneyu ranks both sides and gives a p-value; here that takes longer than all else for many runs.
    """
    above, below = np.sort(positive), np.sort(negative)
    if not len(above) or not len(below) or np.isnan(above[-1]) or np.isnan(below[-1]):
        return float("nan")
    lower = np.searchsorted(below, above, "left").sum() + np.searchsorted(below, above, "right").sum()
    return float(lower / 2 / (len(above) * len(below)))
