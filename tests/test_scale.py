"""What keeps the aggregation of a full sweep fast gives the same as the slow way; a small sweep of every model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, rankdata

from sae_outliers.analysis import stats, write
from sae_outliers.analysis.aggregation import read_inputs
from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.analysis.figures import death_curves
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables.alignment import alignment
from sae_outliers.analysis.trained import CURVE_OWNER, MIN_DEAD
from sae_outliers.utils.cells import format_for_display
from tests.many_records import CONDITIONS, layers, write_sweep
from tests.test_figures import curves


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    results_dir = tmp_path_factory.mktemp("sweep")
    assert write_sweep(results_dir, most_layers=1) == 19 * 24
    return read_inputs(AggregateConfig(results_dir=str(results_dir), allow_mixed=True))[0]


def test_the_full_sweep_has_454_layers_under_24_conditions() -> None:
    assert sum(1 for _ in layers(None)) * len(CONDITIONS) == 454 * 24


def test_every_record_curve_and_feature_is_read(sweep: Inputs) -> None:
    runs, curves = sweep.trained
    assert len(sweep.natural) == len(runs) == 19 * 24
    for run in runs.sample(5, random_state=0).to_dict("records"):
        slow = pd.read_parquet(f"{run['run_dir']}/curves.parquet")
        mine = curves[curves["run_dir"] == run["run_dir"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine[slow.columns], slow)
        assert {tuple(row) for row in mine[CURVE_OWNER].astype(object).fillna(0).to_numpy()} == {
            tuple(0 if pd.isna(run[name]) else run[name] for name in CURVE_OWNER)
        }
        half = stats.time_to_half(slow["tokens"], slow["dead_pct_topk"])
        enough = round(run["dead_pct_init_topk"] * run["n_features"] / 100) >= MIN_DEAD
        np.testing.assert_equal(run["half_topk"], half if enough else np.nan)


def test_fates_and_alignment_are_those_that_pandas_and_scipy_find(sweep: Inputs) -> None:
    runs = sweep.trained.runs
    told = alignment(sweep)
    for i in (0, 100, 455):
        features = pd.read_parquet(f"{runs['run_dir'][i]}/features.parquet")
        counted = pd.crosstab(features["fate_init"], features["fate_final"]).reindex(columns=range(3), fill_value=0)
        assert runs["features"][i].fates.tolist() == counted.to_numpy().tolist()
        away, dead = -features["alignment_init"].astype(float), features["fate_init"] == 2
        expected = mannwhitneyu(away[dead], away[~dead]).statistic / dead.sum() / (~dead).sum()
        assert told["AUC dead by ReLU"][i] == expected


def test_auc_counts_ties_half_and_is_blank_without_two_sides() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.integers(1, 6, 30)
    assert stats.auc(a, b) == np.mean([(x > y) + (x == y) / 2 for x in a for y in b])
    for sides in (([], [1.0]), ([1.0], []), ([np.nan, 1.0], [1.0])):
        assert np.isnan(stats.auc(*sides))


def test_ranks_are_those_of_scipy_on_the_rows_as_they_are() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 1.0])
    np.testing.assert_array_equal(stats.weighted_ranks(values, np.ones((1, 5)))[0], rankdata(values))


def test_a_long_latex_table_is_what_pandas_makes_of_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"model_a": [r"x_1 & 50 % {#$}", "b\\c", "d~e"], "γ": [1.25, 2.0, np.nan]})
    write.write_table(write.Table("t", frame, "A note."), tmp_path)
    expected = format_for_display(frame).to_latex(
        index=False, escape=True, column_format="lr", caption="A note.", label="tab:t", position="htbp"
    )
    assert (tmp_path / "t.tex").read_text() == expected.replace("γ", r"$\gamma$")


@pytest.mark.parametrize(("runs", "bands"), [(death_curves.MAX_LINES, 0), (death_curves.MAX_LINES + 1, 3)])
def test_many_runs_in_a_panel_become_a_band_that_holds_the_middle_of_them(runs: int, bands: int) -> None:
    drawn = curves(1, runs, centerings=("off",))
    (axes,) = death_curves.draw(drawn).axes
    assert len(axes.collections) == bands
    assert len(axes.lines) == (3 if bands else 3 * (1 + runs))
    if bands:
        band: Any = axes.collections[1].get_paths()[0].vertices  # of dead by TopK
        first = drawn.loc[drawn["tokens"] == 0, "dead_pct_topk"]
        ends = band[band[:, 0] == 0, 1]
        np.testing.assert_allclose([ends.min(), ends.max()], first.quantile([0.1, 0.9]))
