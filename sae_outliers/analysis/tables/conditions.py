"""Death at initialisation and after training by model and condition."""

import pandas as pd

from sae_outliers.analysis.conditions import b_dec_learning
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import measured_once
from sae_outliers.analysis.tables import table

NOTE = (
    "Medians over layers (for `all`: over the layers of all models, so models with more layers weigh "
    "more) of the percentage of dead features. `init` takes all records, whatever the revival, which "
    "changes nothing before training; `trained init`, `end`, FVU and L0 take trained records only, so "
    "compare `end` with `trained init`. `inactive`: the SAE itself, whatever its type, has them active on "
    "no evaluation token. `not fired`: in the last dead_window training tokens."
)
AT_INIT = ("dead_pct_init_topk", "dead_pct_init_relu")
AT_END = ("dead_pct_final_topk", "dead_pct_final_relu", "dead_pct_final", "dead_pct_final_window", "fvu", "l0")


@table("conditions", NOTE, "natural", AT_INIT + AT_END)
def conditions(inputs: Inputs) -> pd.DataFrame:
    """Return medians over layers of death before and after training, by model, SAE, revival and centering.

    A revival changes nothing before training, so `init` is the same for all of them. A column `b_dec` tells those apart
    whose b_dec was frozen or learnt faster than the rest, where there are any.
    """
    records = inputs.natural
    once, trained = measured_once(records, by_sae=True), records[records["train_steps"] > 0]
    trained = trained.assign(
        b_dec=list(map(b_dec_learning, trained["b_dec_lr"], trained["lr"], trained["freeze_b_dec"]))
    )
    parts = []
    for model in ["all", *sorted(records["model"].unique())]:
        mine = [rows if model == "all" else rows[rows["model"] == model] for rows in (once, trained)]
        for (sae, centering), at_init in mine[0].groupby(["sae", "centering"]):
            at_end = mine[1][(mine[1]["sae"] == sae) & (mine[1]["centering"] == centering)]
            for revival, b_dec in none_first(at_end[["revival", "b_dec"]]) or [("none", "")]:
                key = {"model": model, "sae": sae, "revival": revival, "centering": centering, "b_dec": b_dec}
                these = at_end[(at_end["revival"] == revival) & (at_end["b_dec"] == b_dec)]
                parts.append(key | _condition_row(at_init, these))
    rows = pd.DataFrame(parts)
    return rows if rows["b_dec"].any() else rows.drop(columns="b_dec")


def none_first(kinds: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the distinct pairs of revival and b_dec, beginning with those without a revival."""
    pairs = set(kinds.itertuples(index=False, name=None))
    return sorted(pairs, key=lambda pair: (pair[0] != "none", pair))


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
