"""What the page holds of the records: a frame for each kind of mark, in the records' own names and numbers."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_outliers.analysis.conditions import conditions_of
from sae_outliers.analysis.figures.bias_takes_over import FREE, FROZEN, of_the_bias
from sae_outliers.analysis.figures.gamma_by_depth import spread
from sae_outliers.analysis.figures.style import gamma_limits
from sae_outliers.analysis.report.captions import SETTINGS, measured_on
from sae_outliers.analysis.select import measured_once
from sae_outliers.analysis.tables.models import natural_gammas
from sae_outliers.analysis.tables.recovery import recovery_by_model
from sae_outliers.pages.encode import plain
from sae_outliers.stats import theory

LAYER = (
    *("model", "domain", "layer", "last_layer", "centering", "preprocessing", "n_eval", "n_features", "k"),
    *("seed", "sae_seed", "d_model", "gamma", "gamma_raw", "gamma_sae_input", "effective_rank", "kurtosis_median"),
    *("outlier_dims", "dead_pct_init_topk", "dead_pct_init_relu"),
    *("theory_pct_topk", "theory_pct_topk_small_gamma", "theory_pct_relu", "git_commit"),
)
RUN = (
    *("model", "layer", "planted_gamma", "gamma", "condition", "seed", "sae_seed", "tokens_trained"),
    *("dead_pct_init_topk", "dead_pct_final_topk", "half_topk", "dead_pct_init_relu", "dead_pct_final_relu"),
    *("half_relu", "fvu", "l0", "b_dec_distance", "mean_in_bias", "always_on", "run_id"),
)
CAPTION = ("model", "layer", *SETTINGS)  # what `measured_on` needs
FORMS = {"TopK": "closed form", "TopK small": "small-γ threshold", "ReLU": "closed form"}
DEATHS = ("dead_pct_topk", "dead_pct_relu", "dead_pct_window")  # of curves.parquet, in the order of the page
BIAS = ("mean_in_bias", "always_on", "dead_pct_relu")
OF_BIAS = {FREE: "learns", FROZEN: "frozen"}
BREAK = " · "  # between the two lines of a label
MOST_POINTS = 500_000  # of all death curves together; more are thinned out, for the page's size
MOST_LABELS = 24  # names beside the lines of γ by depth


def layers(natural: pd.DataFrame) -> pd.DataFrame:
    """Return a row per layer, and per setting where several are mixed, with centering=off."""
    return _chosen(measured_once(natural[(natural["centering"] == "off") & natural["gamma"].notna()]), LAYER)


def other_centerings(natural: pd.DataFrame) -> pd.DataFrame:
    """Return what `layers` does not: the same under the other centerings."""
    return _chosen(measured_once(natural[natural["centering"] != "off"]), LAYER)


def _chosen(rows: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return the columns that any row has something in."""
    present = [name for name in columns if name in rows and rows[name].notna().any()]
    chosen = rows[present].reset_index(drop=True)
    return chosen.assign(outlier_dims=chosen["outlier_dims"].map(_dims)) if "outlier_dims" in chosen else chosen


def _dims(dims: Any) -> str:
    """Return [[412, 38.2], ...] as `412 (38.2), ...`."""
    return ", ".join(f"{index:.0f} ({ratio:.1f})" for index, ratio in dims) if isinstance(dims, list) else ""


def closed_forms(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the closed forms over γ at the sizes of the rows: `gamma`, `form`, `percent`, `sizes`, `death`."""
    parts = []
    gamma = np.geomspace(*gamma_limits(rows["gamma"]), 150)
    sizes = rows.reindex(columns=["n_eval", "n_features", "k"]).dropna().drop_duplicates()  # which old records lack
    for n_eval, n_features, k in sizes.astype(int).to_numpy():
        curves = {
            "TopK": theory.dead_by_topk(gamma, n_eval, n_features, k),
            "TopK small": theory.dead_by_topk_small_gamma(gamma, n_eval, n_features, k),
            "ReLU": theory.dead_by_relu(gamma, n_eval),
        }
        of = f"{n_eval:,} tokens, {n_features:,} features, k = {k}"
        for name, chance in curves.items():
            part = {"gamma": gamma, "percent": 100 * chance, "form": FORMS[name], "death": name.split()[0], "sizes": of}
            parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def depths(natural: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each γ of each layer, with its relative `depth`."""
    rows = natural_gammas(natural.dropna(subset="gamma"))
    rows = rows.assign(depth=rows["layer"] / rows["last_layer"].clip(lower=1)).sort_values(["model", "depth"])
    return _chosen(rows, ("model", "domain", "layer", "last_layer", "depth", "gamma", "n_eval", "seed"))


def depth_labels(rows: pd.DataFrame, logarithmic: bool) -> pd.DataFrame:
    """Return where each model's name stands: `depth` and `gamma` of its last point; `place`, a γ with room for it."""
    ends = rows.groupby("model").last().reset_index().sort_values("gamma", ignore_index=True)
    low, high = (np.log(limit) if logarithmic else limit for limit in gamma_limits(rows["gamma"]))
    heights = (np.log(ends["gamma"]) if logarithmic else ends["gamma"]).to_numpy(float)
    # as fractions of the height, where a line of text needs about a 22nd, between the ends of the axis
    wanted, gap = (heights - low) / (high - low), 0.045
    places = np.clip(spread(wanted, gap), 0, None)
    places -= max(0.0, float(places.max()) - 1)
    values = low + places * (high - low)
    return ends.assign(place=np.exp(values) if logarithmic else values)[["model", "domain", "depth", "gamma", "place"]]


def runs(trained: pd.DataFrame) -> pd.DataFrame:
    """Return a row per trained run, in the order of `Trained.runs`."""
    return _chosen(trained, RUN)


def death_curves(trained: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Any]:
    """Return the death curves of each layer and planted γ, to 0.01 %.

    `tokens`: the distinct lists of tokens. `sources`, in the order of `trained`: `model`, `title`, `gamma`, `caption`,
    and `curves`: [number of the run in `runs`, number of its tokens, a list for each of `measures`].
    """
    if curves.empty:
        return {"measures": [], "tokens": [], "sources": []}
    measures = [name for name in DEATHS if name in curves and curves[name].notna().any()]
    every = -(-len(curves) // MOST_POINTS)
    curves = curves[_kept(curves["run_dir"], every)]
    where = _slices(curves["run_dir"])
    percents = [_rounded(curves[name]) for name in measures]
    of_run = {run_dir: [values[at] for values in percents] for run_dir, at in where.items()}
    along = curves["tokens"].astype(int).tolist()
    tokens: dict[tuple[int, ...], int] = {}
    sources = []
    of_group = trained[[name for name in (*CAPTION, "run_dir", "planted_gamma", "gamma") if name in trained]]
    for (model, layer, planted), group in of_group.groupby(
        ["model", "layer", "planted_gamma"], dropna=False, sort=False
    ):
        known = {number: run_dir for number, run_dir in group["run_dir"].items() if run_dir in of_run}
        if known:
            found = [
                [number, tokens.setdefault(tuple(along[where[run_dir]]), len(tokens)), *of_run[run_dir]]
                for number, run_dir in known.items()
            ]
            sources.append(_source(model, layer, planted, group, every) | {"curves": found})
    return {"measures": measures, "tokens": [list(one) for one in tokens], "sources": sources}


def _kept(run: pd.Series, every: int) -> NDArray[np.bool_]:
    """Tell which points stay: of each run, whose points follow one another, one of `every`, its first and its last."""
    names = run.to_numpy()
    first = np.r_[True, names[1:] != names[:-1]]
    place = np.arange(len(names)) - np.maximum.accumulate(np.where(first, np.arange(len(names)), 0))
    kept: NDArray[np.bool_] = (place % every == 0) | np.r_[first[1:], True]
    return kept


def _slices(run: pd.Series) -> dict[str, slice]:
    """Return where each run's points are."""
    names = run.to_numpy()
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    return {names[start]: slice(start, end) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)}


def _rounded(percent: pd.Series) -> list[float | None]:
    values = percent.to_numpy(float).round(2)
    return [None if value != value else int(value) if value.is_integer() else value for value in values.tolist()]


def _source(model: Any, layer: Any, planted: Any, group: pd.DataFrame, every: int) -> dict[str, Any]:
    gamma = float(group["gamma"].iloc[0] if pd.isna(planted) else planted)
    kind = "γ" if pd.isna(planted) else "planted γ"
    thinned = "" if every == 1 else f" One point of {every} is shown."
    return {
        "model": str(model),
        "title": f"{model}, layer {layer}" + ("" if np.isnan(gamma) else f", {kind} {gamma:.2f}"),
        "gamma": plain(gamma),
        "caption": measured_on(group, trained=True) + thinned,
    }


def bias_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Return how the bias takes the mean over in the uncentered TopK runs of planted γ without revival."""
    rows = of_the_bias(curves)
    if rows.empty:
        return pd.DataFrame()
    run = rows["run_dir"].map({name: i for i, name in enumerate(rows["run_dir"].unique())})
    rows = rows.assign(run=run, b_dec=rows["condition"].map(OF_BIAS), mean_in_bias=100 * rows["mean_in_bias"])
    rows = rows[_kept(rows["run"], -(-len(rows) // (MOST_POINTS // 10)))]
    return _chosen(rows, ("model", "layer", "planted_gamma", "b_dec", "run", "tokens", *BIAS))


def recovery_bars(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `recovery` by model and condition: dead by TopK in percent, `init` and `end`; models by γ."""
    by_model = recovery_by_model(frame)
    by_model = by_model.sort_values("γ") if "γ" in by_model else by_model
    rows = [
        {
            "model": row["model"],
            "label": f"{row['model']}{BREAK}{row['layers']}{gamma_of(row)}",
            "condition": name,
            "init": row.get(f"{name} init"),
            "end": row.get(f"{name} end"),
        }
        for row in by_model.to_dict("records")
        for name in conditions_of(by_model)
        if not pd.isna(row.get(f"{name} init"))
    ]
    return pd.DataFrame(rows)


def gamma_of(row: dict[Any, Any]) -> str:
    return f", γ {row['γ']:.2g}" if "γ" in row else ""


def planted_ends(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the table `planted` for each layer and each `death`, TopK and ReLU: a row per γ and condition, with the
    percentages `init` and `end`.
    """
    names = [name for name in conditions_of(frame) if not name.endswith(" ReLU")]  # columns `<condition> ReLU init`
    found = []
    for _, rows in frame.groupby(["model", "layer"], sort=False):
        for death, prefix in {"TopK": "", "ReLU": "ReLU "}.items():
            parts = [
                rows[["model", "layer"]]
                .assign(death=death, condition=name, planted_gamma=rows["planted γ"])
                .assign(**{when: rows.get(f"{name} {prefix}{when}", np.nan) for when in ("init", "end")})
                .dropna(subset="end")
                for name in names
            ]
            ends = pd.concat(parts, ignore_index=True)
            if len(ends):
                found.append(ends)
    return found
