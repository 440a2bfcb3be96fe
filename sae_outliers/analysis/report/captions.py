"""On what a figure was measured, in words."""

from typing import Any

import pandas as pd

LONGEST = 4  # models, values of a setting, or commits that are named one by one
SETTINGS = {  # column -> words around its value
    "n_eval": "{} tokens a layer",
    "n_features": "{} features",
    "k": "k = {}",
    "preprocessing": "{} activations",
    "seed": "seed {}",
    "sae_seed": "SAE seed {}",
    "train_steps": "trained for {} steps",
    "train_batch_size": "of {} tokens",
    "git_commit": "commit {}",
}
OF_TRAINING = ("train_steps", "train_batch_size")
WORDS = {"postln": "post-LN", "raw": "raw"}  # of preprocessing
SHOWN_OF_COMMIT = 7


def measured_on(rows: pd.DataFrame, trained: bool = False) -> str:
    """Return for example `Measured on 6 layers of minilm: 20,000 tokens a layer, 8,192 features, k = 64, ..., seed 0.`

    What no row knows is left out; `trained` adds for how long.
    """
    columns = [name for name in SETTINGS if name in rows and (trained or name not in OF_TRAINING)]
    if "seed" in rows and "sae_seed" in rows and (rows["seed"] == rows["sae_seed"]).all():
        columns.remove("sae_seed")
    told = [SETTINGS[name].format(values) for name in columns if (values := _values(name, rows[name]))]
    settings = ", ".join(told).replace(" steps, of ", " steps of ")
    return f"Measured on {layers_of(rows)}{': ' if settings else ''}{settings}."


def layers_of(rows: pd.DataFrame) -> str:
    """Return for example `92 layers of 7 models` or `6 layers of minilm`."""
    layers, models = len(rows.drop_duplicates(["model", "layer"])), sorted(map(str, rows["model"].unique()))
    return f"{counted(layers, 'layer')} of {', '.join(models) if len(models) <= LONGEST else f'{len(models)} models'}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _values(name: str, column: pd.Series) -> str:
    found = sorted(column.dropna().unique())
    if not found:
        return ""
    if len(found) <= LONGEST:
        return ", ".join(dict.fromkeys(_value(name, value) for value in found))
    if name == "git_commit":
        return f"one of {len(found)}"
    return f"{_value(name, found[0])} to {_value(name, found[-1])} ({len(found)} values)"


def _value(name: str, value: Any) -> str:
    if name == "git_commit":
        commit, dirty, _ = str(value).partition("-dirty")
        return commit[:SHOWN_OF_COMMIT] + dirty
    if isinstance(value, str):
        return WORDS.get(value, value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
