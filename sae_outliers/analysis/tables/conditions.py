"""Death at initialisation and after training by model and condition."""

import pandas as pd

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

    A revival changes nothing before training, so `init` is the same for all of them.
    """
    records = inputs.natural
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
