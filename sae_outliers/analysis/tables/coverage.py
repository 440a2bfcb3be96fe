"""Layers measured of those expected."""

import numpy as np
import pandas as pd

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables import table

NOTE = (
    "Layers measured of those expected, by condition. Expected are the layers up to last_layer of "
    "each model seen, and those of the models that `expected` lists. `trained` counts layers trained "
    "with any revival or without; with one of them, the column that names it."
)


@table("coverage", NOTE, "natural")
def coverage(inputs: Inputs) -> pd.DataFrame:
    """Return a row per condition: layers measured, of how many, how many of them trained, and which are missing.

    Expected are layers 1 to `last_layer` of each model seen, and the layers by model in `expected`. `trained` takes
    every revival, `trained auxk` and the like one.
    """
    records = inputs.natural
    revivals = sorted(set(records.loc[records["train_steps"] > 0, "revival"]) - {"none"})
    wanted = {model: set(layers) for model, layers in (layers_of_models(records) | inputs.expected).items()}
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
    """Return the layers 1 to `last_layer` of each model seen; from 0 where a layer 0 was measured."""
    groups = records.groupby("model")
    first, last = groups["layer"].min().clip(upper=1), groups["last_layer"].max()
    return {str(model): range(int(first[model]), int(last[model]) + 1) for model in first.index}


def _spans(layers: list[int], expected: int) -> str:
    """Format [1, 2, 3, 7] as `1-3, 7`."""
    if len(layers) == expected:
        return "all"
    breaks = np.flatnonzero(np.diff(layers) != 1) + 1
    runs = np.split(np.asarray(layers), breaks)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
