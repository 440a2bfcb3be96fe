"""Tables over records: pure functions from one DataFrame to another, and one writer.

Death columns are in percent (0-100), errors in percentage points; γ and Spearman's ρ are dimensionless; an
empty cell is a figure that was not measured or is not defined.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sae_outliers.analysis.select import measured_once
from sae_outliers.utils.files import atomic_write

Floats = NDArray[np.float64]

SEVERITIES = {"gamma": "γ post-LN", "gamma_raw": "γ raw", "effective_rank": "effective rank"}
DEATHS = {"dead_pct_init_topk": "TopK", "dead_pct_init_relu": "ReLU", "dead_pct_topk_only": "TopK minus ReLU"}
FORMULAS = {  # closed form -> the column that it predicts
    "TopK": ("theory_pct_topk", "dead_pct_init_topk"),
    "TopK, small-γ threshold": ("theory_pct_topk_small_gamma", "dead_pct_init_topk"),
    "ReLU": ("theory_pct_relu", "dead_pct_init_relu"),
}
RESAMPLES = 2000
FEWEST_LAYERS = 5  # below this, a rank correlation says nothing
FEWEST_MODELS = 3  # below this, resampling whole models can give only a handful of different samples


class Table(NamedTuple):
    """A table as it is written: the note stands beside it in the .md and .tex files."""

    name: str
    frame: pd.DataFrame
    note: str


# --- coverage ------------------------------------------------------------------------------------------


def coverage(records: pd.DataFrame, expected: dict[str, range] | None = None) -> pd.DataFrame:
    """A row per condition: layers measured, of how many, how many of them trained, and which are missing.

    Expected are layers 1 to `last_layer` of each model seen, and the layers by model in `expected`. `trained` takes
    every revival, `trained auxk` and the like one.
    """
    revivals = sorted(set(records.loc[records["train_steps"] > 0, "revival"]) - {"none"})
    wanted = {model: set(layers) for model, layers in (layers_of_models(records) | (expected or {})).items()}
    rows = []
    for (sae, centering), group in records.groupby(["sae", "centering"]):
        done = {str(model): set(layers) for model, layers in group.groupby("model")["layer"]}
        trained = group[group["train_steps"] > 0].drop_duplicates(["model", "layer", "revival"])
        missing = {model: sorted(layers - done.get(model, set())) for model, layers in wanted.items()}
        rows.append(
            {
                "sae": sae,
                "centering": centering,
                "layers": sum(len(layers & done.get(model, set())) for model, layers in wanted.items()),
                "expected": sum(map(len, wanted.values())),
                "trained": len(trained.drop_duplicates(["model", "layer"])),
                **{f"trained {name}": int(trained["revival"].eq(name).sum()) for name in revivals},
                "missing": "; ".join(f"{m} {_spans(gone, len(wanted[m]))}" for m, gone in missing.items() if gone),
            }
        )
    return pd.DataFrame(rows)


def layers_of_models(records: pd.DataFrame) -> dict[str, range]:
    """The layers 1 to `last_layer` of each model seen; from 0 where a layer 0 was measured."""
    groups = records.groupby("model")
    first, last = groups["layer"].min().clip(upper=1), groups["last_layer"].max()
    return {str(model): range(int(first[model]), int(last[model]) + 1) for model in first.index}


def _spans(layers: list[int], expected: int) -> str:
    """[1, 2, 3, 7] as `1-3, 7`."""
    if len(layers) == expected:
        return "all"
    breaks = np.flatnonzero(np.diff(layers) != 1) + 1
    runs = np.split(np.asarray(layers), breaks)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# --- Spearman -------------------------------------------------------------------------------------------


def spearman(records: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Spearman's ρ of severity with death at initialisation, centering=off, and bootstrap 95 % intervals."""
    rows = measured_once(records[records["centering"] == "off"])
    rows = rows.assign(dead_pct_topk_only=rows["dead_pct_init_topk"] - rows["dead_pct_init_relu"])
    rows = rows.dropna(subset=[*SEVERITIES, *DEATHS])
    found = [_correlations(domain, group, resamples, seed) for domain, group in overall_and_by_domain(rows)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def overall_and_by_domain(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if len(rows):
        yield "all", rows
        yield from ((str(domain), group) for domain, group in rows.groupby("domain"))


def _correlations(domain: str, rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    layer = rows["model"].astype(str) + "/" + rows["layer"].astype(str)  # all seeds of a layer go together
    by_layers = bootstrap_spearman(rows, layer, FEWEST_LAYERS, resamples, seed)
    by_models = bootstrap_spearman(rows, rows["model"], FEWEST_MODELS, resamples, seed)
    return pd.DataFrame(
        {
            "domain": domain,
            "severity": SEVERITIES[x],
            "death": DEATHS[y],
            "layers": layer.nunique(),
            "models": rows["model"].nunique(),
            "ρ": rank_correlation(rows[x], rows[y]),
            "ρ over layers low": by_layers[x, y][0],
            "ρ over layers high": by_layers[x, y][1],
            "ρ over models low": by_models[x, y][0],
            "ρ over models high": by_models[x, y][1],
        }
        for x in SEVERITIES
        for y in DEATHS
    )


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Spearman's ρ; NaN for fewer than FEWEST_LAYERS rows, or where one side is constant."""
    if len(x) < FEWEST_LAYERS or x.nunique() < 2 or y.nunique() < 2:
        return float("nan")
    return float(spearmanr(x, y).statistic)


def bootstrap_spearman(
    rows: pd.DataFrame, unit: pd.Series, fewest: int, resamples: int, seed: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """95 % percentile intervals of ρ for each severity and death, from resamples of whole units.

    Resamples in which one side is constant have no ρ and are left out. NaN for fewer than `fewest` units, and
    where all resamples agree: those of perfectly ordered rows do, which says nothing of the uncertainty.
    """
    pairs = [(x, y) for x in SEVERITIES for y in DEATHS]
    if unit.nunique() < fewest:
        return dict.fromkeys(pairs, (float("nan"), float("nan")))
    counts = _draw(unit, resamples, seed)
    ranks = {name: _ranks(rows[name].to_numpy(float), counts) for name in (*SEVERITIES, *DEATHS)}
    return {(x, y): _interval(_correlate(ranks[x], ranks[y], counts)) for x, y in pairs}


def _draw(unit: pd.Series, resamples: int, seed: int) -> Floats:
    """How often each resample holds each row, `[resamples, rows]`; the rows of one unit go together."""
    codes, units = pd.factorize(unit)
    drawn = np.random.default_rng(seed).multinomial(len(units), np.full(len(units), 1 / len(units)), size=resamples)
    return drawn[:, codes].astype(np.float64)


def _ranks(values: Floats, counts: Floats) -> Floats:
    """The average rank that each row has in each resample, `[resamples, rows]`, ties included.

    scipy ranks one sample at a time and would take minutes; rows are counted here instead of copied.
    """
    distinct, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.searchsorted(tie[order], np.arange(len(distinct)))
    held = np.add.reduceat(counts[:, order], starts, axis=1)  # rows of each distinct value in each resample
    return (np.cumsum(held, axis=1) - (held - 1) / 2)[:, tie]


def _correlate(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's correlation in each resample; NaN where a side is constant (ranks are exact in float64)."""
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


# --- models, conditions, theory -------------------------------------------------------------------------


def models(records: pd.DataFrame, expected: dict[str, range] | None = None) -> pd.DataFrame:
    """A row per model: layers, γ over them, and the median and worst layer's death at initialisation."""
    once = measured_once(records)
    wanted = layers_of_models(records) | (expected or {})
    rows = [_model_row(str(model), group, len(wanted[str(model)])) for model, group in once.groupby("model")]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(["domain", "model"], ignore_index=True)


def _model_row(model: str, rows: pd.DataFrame, expected: int) -> dict[str, object]:
    off, on = (rows[rows["centering"] == centering] for centering in ("off", "on"))
    gamma = rows.drop_duplicates("layer")["gamma"]  # measured before centering, hence the same in every condition
    return {
        "model": model,
        "domain": rows["domain"].iloc[0],
        "layers": rows["layer"].nunique(),
        "expected": expected,
        "d_model": _span(rows["d_model"]),
        "γ min": gamma.min(),
        "γ median": gamma.median(),
        "γ max": gamma.max(),
        "TopK off median": off["dead_pct_init_topk"].median(),
        "TopK off worst": off["dead_pct_init_topk"].max(),
        "ReLU off median": off["dead_pct_init_relu"].median(),
        "ReLU off worst": off["dead_pct_init_relu"].max(),
        "TopK on median": on["dead_pct_init_topk"].median(),
        "TopK on worst": on["dead_pct_init_topk"].max(),
    }


def _span(widths: pd.Series) -> str:
    """One width, or the smallest and the largest where they differ from layer to layer, as in conv nets."""
    return str(widths.min()) if widths.nunique() == 1 else f"{widths.min()}-{widths.max()}"


def conditions(records: pd.DataFrame) -> pd.DataFrame:
    """Medians over layers of death at initialisation and after training, by model, SAE, revival and centering.

    A revival changes nothing before training, so `init` is the same for all of them.
    """
    once, trained = measured_once(records, by_sae=True), records[records["train_steps"] > 0]
    parts = []
    for model in ["all", *sorted(records["model"].unique())]:
        mine = [rows if model == "all" else rows[rows["model"] == model] for rows in (once, trained)]
        for (sae, centering), at_init in mine[0].groupby(["sae", "centering"]):
            at_end = mine[1][(mine[1]["sae"] == sae) & (mine[1]["centering"] == centering)]
            for revival in none_first(at_end["revival"]) or ["none"]:
                key = {"model": model, "sae": sae, "revival": revival, "centering": centering}
                parts.append(key | _condition_row(at_init, at_end[at_end["revival"] == revival]))
    return pd.DataFrame(parts)


def none_first(revivals: pd.Series) -> list[str]:
    return sorted(revivals.unique(), key=lambda name: (name != "none", name))


def _condition_row(at_init: pd.DataFrame, at_end: pd.DataFrame) -> dict[str, object]:
    return {
        "layers": len(at_init.drop_duplicates(["model", "layer"])),
        "init TopK": _median(at_init, "dead_pct_init_topk"),
        "init ReLU": _median(at_init, "dead_pct_init_relu"),
        "trained layers": len(at_end.drop_duplicates(["model", "layer"])),
        "trained init TopK": _median(at_end, "dead_pct_init_topk"),
        "end TopK": _median(at_end, "dead_pct_final_topk"),
        "trained init ReLU": _median(at_end, "dead_pct_init_relu"),
        "end ReLU": _median(at_end, "dead_pct_final_relu"),
        "end inactive": _median(at_end, "dead_pct_final"),
        "end not fired": _median(at_end, "dead_pct_final_window"),
        "FVU": _median(at_end, "fvu"),
        "L0": _median(at_end, "l0"),
    }


def _median(rows: pd.DataFrame, column: str) -> float:
    return float(pd.to_numeric(rows[column]).median()) if len(rows) else float("nan")


def theory(records: pd.DataFrame) -> pd.DataFrame:
    """Closed form minus measured death at initialisation, centering=off: mean absolute error and bias."""
    once = measured_once(records[records["centering"] == "off"])
    rows = []
    for domain, group in overall_and_by_domain(once):
        for formula, (predicted, measured) in FORMULAS.items():
            error = (group[predicted] - group[measured]).dropna()
            mae, bias = (error.abs().mean(), error.mean()) if len(error) else (np.nan, np.nan)
            rows.append({"domain": domain, "formula": formula, "layers": len(error), "MAE": mae, "bias": bias})
    return pd.DataFrame(rows)


def beside(published: pd.DataFrame, own: pd.DataFrame | None, keys: Sequence[str]) -> pd.DataFrame:
    """`published …` columns next to `own …` ones, matched on `keys`; the published rows first."""
    sides = {"own": own, "published": published}
    named = [
        _nullable_integers(frame).rename(columns={c: f"{side} {c}" for c in frame if c not in keys})
        for side, frame in sides.items()
        if frame is not None and len(frame)
    ]
    if len(named) == 1:
        return named[0]
    rows = pd.concat([frame[list(keys)] for frame in reversed(named)]).drop_duplicates()
    for frame in named:
        rows = rows.merge(frame, on=list(keys), how="left")
    values = [c for c in published if c not in keys]
    return rows[[*keys, *(f"{side} {c}" for c in values for side in sides)]]


def _nullable_integers(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts stay whole numbers when a merge leaves cells empty."""
    return frame.astype({c: "Int64" for c in frame.select_dtypes("integer").columns})


# --- writing --------------------------------------------------------------------------------------------

DECIMALS = {"ρ": 3, "FVU": 3, "AUC": 3, "γ": 2, "tokens": 0}  # by what the column's name contains; 1 otherwise
ESCAPED = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash ", "~": r"\textasciitilde "})
LATEX = {"γ": r"$\gamma$", "ρ": r"$\rho$", "μ": r"$\mu$", "σ": r"$\sigma$"}  # pdflatex has no Greek of its own


def format_for_display(frame: pd.DataFrame) -> pd.DataFrame:
    """All cells as text, rounded; `x low` and `x high` become one column `x 95 %` with `[low, high]`."""
    shown: dict[str, list[str]] = {}
    for column in frame:
        name = str(column)
        if name.endswith(" low"):
            ends = (_texts(frame, name), _texts(frame, name.removesuffix("low") + "high"))
            shown[name.removesuffix("low") + "95 %"] = [
                f"[{a}, {b}]" if a and b else "" for a, b in zip(*ends, strict=True)
            ]
        elif not name.endswith(" high"):
            shown[name] = _texts(frame, name)
    return pd.DataFrame(shown, index=frame.index)


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    values = frame[column]
    if not pd.api.types.is_float_dtype(values):
        return ["" if pd.isna(value) else str(value) for value in values]
    decimals = next((n for part, n in DECIMALS.items() if part in column), 1)
    return ["" if pd.isna(value) else f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values]


def write_table(table: Table, directory: Path) -> None:
    """Write `<name>.csv` (full precision), `.md` and `.tex` (rounded, with the note) below `directory`."""
    text = format_for_display(table.frame)
    right = [pd.api.types.is_numeric_dtype(table.frame.get(c, pd.Series(dtype=float))) for c in text]
    with atomic_write(directory / f"{table.name}.csv") as path:
        table.frame.to_csv(path, index=False)
    with atomic_write(directory / f"{table.name}.md") as path:
        path.write_text(_markdown(text, right, table.note))
    with atomic_write(directory / f"{table.name}.tex") as path:
        path.write_text(_latex(text, right, table))


def _markdown(text: pd.DataFrame, right: list[bool], note: str) -> str:
    align = ["right" if r else "left" for r in right]
    return f"{text.to_markdown(index=False, disable_numparse=True, colalign=align)}\n\n{note}\n"


def _latex(text: pd.DataFrame, right: list[bool], table: Table) -> str:
    align = "".join("r" if r else "l" for r in right)
    caption = table.note.replace("%", r"\%").replace("_", r"\_")
    label = f"tab:{table.name}"
    first = text[:1]  # pandas takes seconds for thousands of rows
    frame = first.to_latex(index=False, escape=True, column_format=align, caption=caption, label=label, position="htbp")
    above, _, below = frame.partition("\\midrule\n")
    rows = "".join(" & ".join(cell.translate(ESCAPED) for cell in row) + " \\\\\n" for row in text.to_numpy())
    latex = f"{above}\\midrule\n{rows}\\bottomrule{below.partition('bottomrule')[2]}"
    for letter, command in LATEX.items():
        latex = latex.replace(letter, command)
    return latex
