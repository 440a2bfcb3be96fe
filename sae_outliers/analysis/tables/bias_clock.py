"""How long b_dec takes to half of the mean: every run with the law's prediction, and the law."""

import numpy as np
import pandas as pd

from sae_outliers.analysis.clock import MIN_SETTINGS, fit_law, halves, predicted_steps, settings, timed_runs
from sae_outliers.analysis.inputs import EVERY, Inputs
from sae_outliers.analysis.tables import table

SHOWN = {
    "model": "model",
    "layer": "layer",
    "gamma": "γ",
    "input_scale": "scale",
    "lr": "lr",
    "train_batch_size": "batch",
    "n_features": "n_features",
    "offset_max": "max|μ_i|",
    "half_bias": "steps to half",
}
NOTE = (
    "Training steps until b_dec holds half of the mean, of TopK runs without revival whose b_dec started without it. "
    "γ of what the SAE is given; max|μ_i| in the units of what it is given, after the scale. Predicted: by "
    "theory.bias_half_time."
)
LAW_NOTE = (
    "The steps of the table bias_clock as a product of powers, fitted by least squares in logs to every second run in "
    "the order of their time, and to all. Error: the factor by which the law is off, on the runs that it was not "
    "fitted to (of the fit to all: on all)."
)


@table("bias_clock", NOTE, "trained", ("offset_max",), apart=EVERY)
def bias_clock(inputs: Inputs) -> pd.DataFrame:
    """Return a row per run."""
    runs = timed_runs(inputs.trained.runs)
    predicted = predicted_steps(runs)
    frame = runs[list(SHOWN)].rename(columns=SHOWN)
    return frame.assign(**{"predicted steps": predicted, "ratio": predicted / runs["half_bias"]})


@table("bias_clock_law", LAW_NOTE, "trained", ("offset_max",), apart=EVERY)
def bias_clock_law(inputs: Inputs) -> pd.DataFrame:
    """Return the coefficients and errors of the law; nothing for fewer than MIN_SETTINGS settings."""
    runs = timed_runs(inputs.trained.runs)
    if settings(runs) < MIN_SETTINGS:
        return pd.DataFrame()
    fitted, others = halves(runs)
    columns = {}
    for name, of, on in (("half of all runs", fitted, others), ("all runs", runs, runs)):
        law = fit_law(of)
        off = np.exp(np.abs(np.log(law.steps(on) / on["half_bias"])))
        rows = {"factor": law.factor} | {f"exponent of {quantity}": power for quantity, power in law.exponents.items()}
        columns[name] = rows | {"runs": len(of), "median error": off.median(), "largest error": off.max()}
    return pd.DataFrame(columns).rename_axis("of the law").reset_index()
