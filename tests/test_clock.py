"""The law of b_dec's half-time: exact powers are found exactly, and only runs that tell something enter."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sae_outliers.analysis.aggregation import aggregate, read_inputs
from sae_outliers.analysis.clock import fit_law, halves, predicted_steps, settings, timed_runs
from sae_outliers.analysis.config import AggregateConfig
from tests.conftest import ROOT
from tests.test_recovery import make_curve, store_run
from tests.test_tables import make_record, trained

POWERS = {"max|μ_i|": 0.5, "lr": -0.9, "γ": 0.3, "batch size": -0.2, "n_features": 0.1}


def powers(n: int, seed: int = 0) -> pd.DataFrame:
    """Runs whose half-time is 7 times a product of powers."""
    rng = np.random.default_rng(seed)
    runs = pd.DataFrame(
        {
            "sae": "topk",
            "revival": "none",
            "offset_max": rng.uniform(0.1, 10, n),
            "lr": rng.choice([1e-4, 1e-3, 1e-2], n),
            "gamma": rng.uniform(0.5, 20, n),
            "train_batch_size": rng.choice([64, 256, 1024], n),
            "n_features": rng.choice([128, 512, 2048], n),
        }
    )
    quantities = (runs[name] for name in ("offset_max", "lr", "gamma", "train_batch_size", "n_features"))
    products = [value.astype(float) ** power for value, power in zip(quantities, POWERS.values(), strict=True)]
    return runs.assign(half_bias=7 * np.prod(products, axis=0))


def test_exact_powers_are_found_on_half_of_the_runs_and_hold_on_the_others() -> None:
    fitted, others = halves(timed_runs(powers(40)))
    assert len(fitted) == len(others) == 20
    law = fit_law(fitted)
    assert law.factor == pytest.approx(7)
    assert law.exponents == pytest.approx(POWERS)
    np.testing.assert_allclose(law.steps(others), others["half_bias"])


def test_a_quantity_that_does_not_vary_has_no_exponent() -> None:
    runs = powers(30).assign(train_batch_size=256, half_bias=lambda runs: runs["offset_max"] / runs["lr"])
    law = fit_law(runs)
    np.testing.assert_allclose(law.steps(runs), runs["half_bias"])
    assert "batch size" not in law.exponents
    assert (law.exponents["max|μ_i|"], law.exponents["lr"]) == pytest.approx((1, -1))


def test_runs_that_differ_in_seeds_alone_are_one_setting() -> None:
    runs = powers(5)
    assert settings(pd.concat([runs, runs, runs])) == settings(runs) == 5


def test_runs_with_a_revival_or_without_an_end_do_not_enter() -> None:
    runs = powers(6).assign(revival=["none"] * 5 + ["auxk"])
    runs.loc[0, "half_bias"], runs.loc[1, "half_bias"] = np.inf, np.nan
    assert len(timed_runs(runs)) == 3


def aggregate_clock(directory: Path, half_times: range) -> None:
    """Aggregate runs whose b_dec holds half of the mean after so many steps each."""
    for i, steps in enumerate(half_times):
        curve = make_curve([80, 60, 40]).assign(step=[0, steps, 2 * steps], mean_in_bias=[0, 0.5, 1.0])
        ends = trained(mean_in_bias=1.0) | {"planted_gamma": 2.0, "gamma": 2.0, "lr": 1e-3}
        record = make_record(run_id=str(i), offset_max=steps / 1e4, input_scale="none", sae_seed=i, **ends)
        store_run(directory, record, curve)
    aggregate(AggregateConfig(results_dir=str(directory), by=["planted_gamma"]))


def test_the_tables_are_of_the_curves_on_disk(tmp_path: Path) -> None:
    aggregate_clock(tmp_path, range(100, 1600, 100))
    runs = pd.read_csv(tmp_path / "tables/bias_clock.csv")
    assert runs["steps to half"].tolist() == list(range(100, 1600, 100))
    law = pd.read_csv(tmp_path / "tables/bias_clock_law.csv").set_index("of the law")
    assert law.loc["exponent of max|μ_i|"].tolist() == pytest.approx([1, 1])
    assert law.loc["median error"].tolist() == pytest.approx([1, 1])
    assert (tmp_path / "figures/bias_clock.png").is_file()


def test_times_that_are_alike_show_no_clock(tmp_path: Path) -> None:
    aggregate_clock(tmp_path, range(1000, 1300, 100))
    assert len(pd.read_csv(tmp_path / "tables/bias_clock.csv")) == 3
    assert not (tmp_path / "figures/bias_clock.png").exists()


def test_the_law_that_is_shipped_is_the_one_of_the_committed_runs() -> None:
    by = ["lr", "n_features", "input_scale", "train_batch_size", "train_steps"]
    inputs, _ = read_inputs(AggregateConfig(results_dir=str(ROOT / "results/recovery/clock"), by=by))
    runs = timed_runs(inputs.trained.runs)
    law, steps = fit_law(runs), predicted_steps(runs)
    np.testing.assert_allclose(steps, law.steps(runs), rtol=0.05)
    fitted, others = halves(runs)
    off = np.exp(np.abs(np.log(fit_law(fitted).steps(others) / others["half_bias"])))
    assert np.median(off) < 1.2
    assert off[others["gamma"] < 11].max() < 1.5
    assert off.max() < 1.6
