"""The authors' published tables (the user's own copies), in the columns of ours, and both shown together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_outliers.analysis.conditions import CONDITIONS
from sae_outliers.analysis.inputs import Inputs, Product
from sae_outliers.analysis.tables import TABLES, recovery
from sae_outliers.analysis.write import Table
from sae_outliers.results.record import SCHEMA_VERSION
from sae_outliers.stats.theory import dead_by_relu, dead_by_topk, dead_by_topk_small_gamma

# The settings of arXiv 2605.31518, which the published file does not repeat; the seeds are not stated.
SETTINGS: dict[str, Any] = {
    "preprocessing": "postln",
    "special_tokens": None,
    "n_eval": 100_000,
    "n_features": 8192,
    "k": 64,
    "seed": None,
    "sae_seed": None,
    "init": "random",
    "init_b_dec": "zeros",
    "planted_gamma": None,
    "train_steps": 0,
    "sae": "topk",
    "revival": "none",
    "schema_version": SCHEMA_VERSION,
}
COLUMNS = (
    "model",
    "layer",
    "hidden_dim",
    "gamma",
    "gamma_raw",
    "effective_rank",
    "dead_pct_init_topk",
    "dead_pct_init_relu",
    "dead_pct_init_centered",
    "domain",
)
TRAINED = {  # published name -> that of `recovery`
    "baseline": CONDITIONS["none", "off", ""].name,
    "auxk": CONDITIONS["auxk", "off", ""].name,
    "centered": CONDITIONS["none", "on", ""].name,
}
TRAINED_COLUMNS = {
    f"dead_pct_{published}_{condition}": f"{name} {when}"
    for condition, name in TRAINED.items()
    for published, when in {"init": "init", "final": "end"}.items()
}

PUBLISHED_NOTE = (
    " `published`: the same figures from the reference table, whose domains are used for both sides "
    "(gLM2 under language, protein and genomic as biology). The two sides need not hold the same "
    "layers: see their counts."
)


def read_reference(path: Path) -> pd.DataFrame:
    """Return the published rows in the columns of the records, one for centering=off and one for centering=on each.

    Raises:
        ValueError: the file is absent, not a table, lacks columns or rows, or has a cell that is not a number.
    """
    published = _checked(path, COLUMNS)
    last = published.groupby("model")["layer"].transform("max")
    rows = published.assign(**SETTINGS, last_layer=last, d_model=published["hidden_dim"], **_theory(published["gamma"]))
    centered = rows.assign(
        centering="on", dead_pct_init_topk=rows["dead_pct_init_centered"], dead_pct_init_relu=float("nan")
    )
    return pd.concat([rows.assign(centering="off"), centered], ignore_index=True)


def read_trained_reference(path: Path) -> pd.DataFrame:
    """Return the published trained SAEs, a row per layer with the columns `TopK init`, `TopK end`, ... of `recovery`.

    Raises:
        ValueError: as for `read_reference`.
    """
    columns = ["domain", "model", "layer", *TRAINED_COLUMNS]
    return _checked(path, columns)[columns].rename(columns=TRAINED_COLUMNS)


def _checked(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        published = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise ValueError(f"The reference {path} cannot be read as a CSV file ({error})") from error
    missing = [column for column in columns if column not in published]
    if missing:
        raise ValueError(f"The reference {path} lacks the column(s) {', '.join(missing)}")
    if published.empty:
        raise ValueError(f"The reference {path} has no rows")
    named = [column for column in columns if column not in ("model", "domain")]
    numbers = published[named].apply(pd.to_numeric, errors="coerce")
    wrong = numbers.columns[~np.isfinite(numbers).all()]
    if len(wrong):
        raise ValueError(f"The reference {path} has cells that are not numbers in {', '.join(wrong)}")
    for column in numbers:
        most = 100 if column.startswith("dead_pct") else math.inf
        if not numbers[column].between(0, most).all():
            value = numbers[column][~numbers[column].between(0, most)].iloc[0]
            range_ = "between 0 and 100" if most == 100 else "0 or above"
            raise ValueError(f"The reference {path} has {column}={value:g}, which must be {range_}")
    twice = published[published.duplicated(["model", "layer"])]
    if len(twice):
        model, layer = twice.iloc[0][["model", "layer"]]
        raise ValueError(f"The reference {path} has layer {layer} of {model} twice: leave one of its rows out")
    return published.assign(**{column: numbers[column] for column in named})


def _theory(gamma: pd.Series) -> dict[str, Any]:
    sizes = (SETTINGS["n_eval"], SETTINGS["n_features"], SETTINGS["k"])
    return {
        "theory_pct_topk": 100 * dead_by_topk(gamma, *sizes),
        "theory_pct_topk_small_gamma": 100 * dead_by_topk_small_gamma(gamma, *sizes),
        "theory_pct_relu": 100 * dead_by_relu(gamma, sizes[0]),
    }


def in_published_domains(own: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Return `own` with each model in the domain that the published table gives it.

    The published table files gLM2 under language, and protein and genomic models under biology.
    """
    theirs = published.drop_duplicates("model").set_index("model")["domain"]
    merged = dict.fromkeys(("protein", "genomic"), "biology") if "biology" in set(theirs) else {}
    return own.assign(domain=own["model"].map(theirs).fillna(own["domain"].replace(merged)))


def reference_tables(
    inputs: Inputs, published: pd.DataFrame | None, published_trained: pd.DataFrame | None
) -> Iterator[Table]:
    """Make every table that the authors published too, published next to ours."""
    if published is not None:
        for name, one in sorted(TABLES.items()):
            if one.keys:
                theirs, own = one.make(Inputs(published)), _in_their_domains(one, inputs, published)
                yield Table(f"reference_{name}", merge_published(theirs, own, one.keys), one.note)
    if published_trained is not None:
        own = recovery.recovery(inputs) if len(inputs.trained.runs) else pd.DataFrame()
        if len(own):
            own = in_published_domains(own, published_trained).reindex(columns=published_trained.columns)
        frame = merge_published(published_trained, own, ["domain", "model", "layer"])
        yield Table("reference_recovery", frame, recovery.NOTE)


def _in_their_domains(one: Product, inputs: Inputs, published: pd.DataFrame) -> pd.DataFrame | None:
    """Make our table with the published domains; None where our records have nothing for it."""
    if inputs.natural.empty or one.is_blank(inputs):
        return None
    own: pd.DataFrame = one.make(replace(inputs, natural=in_published_domains(inputs.natural, published)))
    return own


def merge_published(published: pd.DataFrame, own: pd.DataFrame | None, keys: Sequence[str]) -> pd.DataFrame:
    """Return `published ...` columns next to `own ...` ones, matched on `keys`; the published rows first."""
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
    """Keep counts whole numbers when a merge leaves cells empty."""
    return frame.astype({c: "Int64" for c in frame.select_dtypes("integer").columns})
