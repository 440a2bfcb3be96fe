"""Recovery: tables and figures against hand-made runs, naive loops and cases whose answer is known."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from sae_outliers.analysis.conditions import CONDITIONS as STUDY
from sae_outliers.analysis.conditions import condition_name, conditions_among
from sae_outliers.analysis.figures import recovery_bars
from sae_outliers.analysis.inputs import Inputs, complete
from sae_outliers.analysis.make import make_figures, make_tables, measured_columns
from sae_outliers.analysis.stats import auc, time_to_half
from sae_outliers.analysis.summary import recovery_lines
from sae_outliers.analysis.tables.alignment import alignment
from sae_outliers.analysis.tables.fates import fates
from sae_outliers.analysis.tables.planted import planted
from sae_outliers.analysis.tables.recovery import recovery, recovery_by_model
from sae_outliers.analysis.trained import read_trained
from sae_outliers.results.layout import run_dir
from sae_outliers.results.record import read_records, write_row
from sae_outliers.runs.record import Record
from tests.test_tables import make_record, trained

CENTERED = {"theory_pct_topk": 0.0, "theory_pct_relu": 0.0}  # of what is left of γ
CONDITIONS: list[dict[str, Any]] = [
    {},
    {"revival": "auxk"},
    {"centering": "on"} | CENTERED,
    {"centering": "whiten"} | CENTERED,
]


FOUR = ["TopK", "+ AuxK", "+ centering", "+ whitening"]


def make_curve(topk: list[float], relu: list[float] | None = None, step: int = 100) -> pd.DataFrame:
    """A death curve with a point every `step` tokens."""
    return pd.DataFrame(
        {
            "tokens": step * np.arange(len(topk)),
            "dead_pct_topk": topk,
            "dead_pct_relu": relu or [0.0] * len(topk),
            "dead_pct_window": np.nan,
            "b_dec_distance": np.linspace(1, 0.5, len(topk)),
        }
    )


def make_features(init: list[int], final: list[int], alignment: list[float] | None = None) -> pd.DataFrame:
    aligned = np.zeros(len(init)) if alignment is None else np.array(alignment)
    return pd.DataFrame({"fate_init": init, "fate_final": final, "alignment_init": aligned}).astype(
        {"fate_init": "int8", "fate_final": "int8", "alignment_init": "float32"}
    )


def store_run(
    results_dir: Path, record: Record, curve: pd.DataFrame | None = None, features: pd.DataFrame | None = None
) -> None:
    directory = run_dir(results_dir, record.model, record.layer, record.run_id)
    directory.mkdir(parents=True, exist_ok=True)
    write_row(directory, asdict(record))
    if curve is not None:
        curve.to_parquet(directory / "curves.parquet")
    if features is not None:
        features.to_parquet(directory / "features.parquet")


def store_conditions(results_dir: Path, name: str, **changes: Any) -> None:
    """A trained run of each condition of the study; every one starts at 80 % and ends 10 % lower than the last."""
    for i, condition in enumerate(CONDITIONS):
        record = make_record(
            **{"run_id": f"{name}{i}", "dead_pct_init_topk": 80.0, "dead_pct_init_relu": 20.0, "gamma": 2.0}
            | trained(dead_pct_final_topk=40.0 - 10 * i) | changes | condition
        )  # fmt: skip
        store_run(results_dir, record, make_curve([80, 60, 40 - 10 * i], [20, 15, 12]), make_features([0, 1], [0, 0]))


def read(results_dir: Path) -> Inputs:
    return Inputs(trained=read_trained(complete(read_records(results_dir), measured_columns())))


# --- conditions and their runs


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (("topk", "none", "off"), "TopK"),
        (("topk", "auxk", "off"), "+ AuxK"),
        (("topk", "none", "on"), "+ centering"),
        (("topk", "none", "whiten"), "+ whitening"),
        (("topk", "auxk", "on"), "TopK + AuxK + centering"),
        (("topk", "resample", "geometric_median"), "TopK + resample + geometric_median"),
        (("relu", "none", "off"), "relu"),
    ],
)
def test_conditions_have_the_names_of_the_study_or_say_what_they_are(kind: tuple[str, str, str], name: str) -> None:
    assert condition_name(*kind) == name


def test_a_faster_b_dec_is_a_condition_of_its_own(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(run_id="a", **trained(lr=1e-3, b_dec_lr=1e-3)))
    store_run(tmp_path, make_record(run_id="b", **trained(lr=1e-3, b_dec_lr=1.0)))
    assert list(read(tmp_path).trained.runs["condition"]) == ["TopK", "+ fast b_dec"]
    assert condition_name("topk", "auxk", "off", b_dec="fast b_dec") == "TopK + AuxK + fast b_dec"


def test_only_trained_records_enter_natural_before_planted_and_in_the_order_of_the_study(tmp_path: Path) -> None:
    store_conditions(tmp_path, "natural")
    store_conditions(tmp_path, "planted", planted_gamma=5.0)
    store_run(tmp_path, make_record(run_id="untrained"))
    runs, curves = read(tmp_path).trained
    assert list(runs["condition"]) == FOUR * 2
    assert list(runs["planted_gamma"].isna()) == [True] * 4 + [False] * 4
    assert len(curves) == 8 * 3
    assert curves.groupby("condition")["dead_pct_topk"].last().to_dict() == {
        "TopK": 40, "+ AuxK": 30, "+ centering": 20, "+ whitening": 10,
    }  # fmt: skip


def test_without_trained_records_there_is_nothing_to_tell(tmp_path: Path) -> None:
    store_run(tmp_path, make_record())
    found = read(tmp_path)
    assert found.trained.runs.empty
    assert not list(make_tables(found))
    assert not list(make_figures(found))


def test_the_course_has_the_extremes_on_the_way_and_the_median_over_seeds(tmp_path: Path) -> None:
    in_bias = {"a": [0, 0.3, 0.7, 0.96], "b": [0, 0.5, 0.95, 1.0], "c": [0, 0, 0, 0.1]}
    most = {"a": 30, "b": 50, "c": 90}
    for seed, (name, mean_in_bias) in enumerate(in_bias.items()):
        curve = make_curve([80] * 4, [10, most[name], 20, 0]).assign(
            step=[0, 10, 20, 30], mean_in_bias=mean_in_bias, always_on=[0, 3, 2, seed], always_on_l0_pct=[0, 20, 30, 5],
            mmcs=[0.4, 0.3, 0.8, 0.9],
        )  # fmt: skip
        ends = trained(mean_in_bias=mean_in_bias[-1], mmcs=0.9, dead_pct_final_relu=0.0)
        store_run(tmp_path, make_record(run_id=name, gamma=1.6, dead_pct_init_relu=10.0, sae_seed=seed, **ends), curve)
    table = next(one for one in make_tables(read(tmp_path)) if one.name == "course")
    points = {"": 1 + 25 / 30, " least": 2 + 5 / 20, " most": 1 + 45 / 70}  # of the curve, between which half are back
    left = {f"γ left with half back{of}": pytest.approx(1.6 * (1 - at / 6)) for of, at in points.items()}
    assert table.frame.iloc[0].drop(["model", "layer", "condition"]).to_dict() == {
        "runs": 3, "init ReLU": 10, "peak ReLU": 50, "peak ReLU least": 30, "peak ReLU most": 90, "steps to peak": 10,
        "end ReLU": 0, "end ReLU least": 0, "end ReLU most": 0, "peak always on": 3, "peak of their L0 %": 30,
        "lowest MMCS": 0.3, "end MMCS": 0.9, "steps to half": 15, "steps to half least": 10, "steps to 95 %": 30,
        "mean in bias": 0.96, "steps to γ left 1": 30, **left,
    }  # fmt: skip


def test_what_never_died_or_came_back_leaves_no_gamma(tmp_path: Path) -> None:
    bias = {"step": [0, 10, 20], "mean_in_bias": 0.5, "always_on": 0, "always_on_l0_pct": 0}
    for name, relu in {"topk": [0.0, 1.0, 0.0], "relu": [20.0, 90.0, 60.0]}.items():
        record = make_record(run_id=name, sae=name, n_features=512, **trained(mean_in_bias=0.5))
        store_run(tmp_path, record, make_curve([90] * 3, relu).assign(**bias))
    table = next(one for one in make_tables(read(tmp_path)) if one.name == "course")
    assert len(table.frame) == 2
    assert "γ left with half back" not in table.frame


def test_runs_without_their_files_leave_blanks(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(dead_pct_init_topk=50.0, **trained()))
    found = read(tmp_path)
    assert np.isnan(found.trained.runs["half_topk"][0])
    assert [table.name for table in make_tables(found)] == ["recovery", "trained"]
    assert [name for name, _ in make_figures(found)] == ["recovery_bars"]


@pytest.mark.parametrize("new", [{"centering": "quantile"}, {"revival": "rewind"}], ids=str)
def test_a_condition_that_no_table_knows_is_shown_like_the_others(tmp_path: Path, new: dict[str, str]) -> None:
    store_conditions(tmp_path, "a")
    for planted_gamma in (None, 3.0):
        record = make_record(
            run_id=f"new{planted_gamma}", dead_pct_init_topk=70.0, planted_gamma=planted_gamma, gamma=2.0,
            **trained(dead_pct_final_topk=7.0), **new,
        )  # fmt: skip
        store_run(tmp_path, record, make_curve([70, 20, 7]))
    name = f"TopK + {next(iter(new.values()))}"
    found = read(tmp_path)
    table: Any = recovery(found)
    assert table.loc[0, [f"{name} init", f"{name} end"]].tolist() == [70, 7]
    assert f"{name} 70.0 -> 7.0" in recovery_lines(table)
    figures = drawn(tmp_path)
    assert [text.get_text() for text in figures["recovery_bars"].axes[0].texts] == ["40", "30", "20", "10", "7"]
    for figure in ("recovery_bars", "recovery_time", "planted_curves"):
        assert name in [text.get_text() for text in figures[figure].legends[0].get_texts()]


def test_looks_tell_conditions_apart() -> None:
    looks = conditions_among([*(known.name for known in STUDY.values()), "TopK + a", "TopK + b"]).values()
    assert len({look.color for look in looks}) == len({(look.dash, look.color) for look in looks}) == len(looks)
    assert list(conditions_among(["TopK + b", "+ AuxK", "TopK"])) == ["TopK", "+ AuxK", "TopK + b"]


# --- how long recovery takes


def test_time_to_half_matches_a_search_on_a_fine_grid() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = np.cumsum(rng.integers(1, 50, 12)) - 1
        dead = np.abs(np.cumsum(rng.normal(-8, 20, 12)) + 60) + 1  # noisy, and not monotonous
        fine = np.linspace(tokens[0], tokens[-1], 200_001)
        below = fine[np.interp(fine, tokens, dead) <= dead[0] / 2]
        expected = below[0] if len(below) else np.inf
        assert time_to_half(tokens, dead) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("dead", "tokens"),
    [
        ([8, 6, 4, 0], 20),
        ([8, 6, 2, 0], 15),
        ([8, 7, 5], np.inf),
        ([0, 0, 5], np.nan),
        ([8, 3, 9, 9], 8),
        ([5], np.inf),
    ],
)
def test_time_to_half_by_hand(dead: list[float], tokens: float) -> None:
    assert time_to_half(10 * np.arange(len(dead)), dead) == pytest.approx(tokens, nan_ok=True)


def test_half_of_a_few_features_is_no_time(tmp_path: Path) -> None:
    for run_id, percent in (("nine", 0.9), ("ten", 1.0)):
        record = make_record(run_id=run_id, n_features=1000, dead_pct_init_topk=percent, **trained())
        store_run(tmp_path, record, make_curve([percent, 0.0]))
    times = read(tmp_path).trained.runs.set_index("run_id")["half_topk"]
    assert np.isnan(times["nine"])
    assert times["ten"] == 50


# --- tables


def test_recovery_lays_the_conditions_of_natural_layers_side_by_side(tmp_path: Path) -> None:
    store_conditions(tmp_path, "a", layer=3, effective_rank=12.0)
    store_conditions(tmp_path, "planted", layer=3, planted_gamma=9.0)
    store_conditions(tmp_path, "relu", layer=4, sae="relu")
    table = recovery(read(tmp_path))
    assert len(table) == 1
    row: Any = table.iloc[0]
    assert tuple(row[["model", "layer", "γ", "effective rank", "runs", "tokens trained"]]) == ("a", 3, 2, 12, 1, 1000)
    assert [row[f"{name} init"] for name in FOUR] == [80] * 4
    assert [row[f"{name} end"] for name in FOUR] == [40, 30, 20, 10]
    assert row["TopK tokens to half"] == 200
    assert row["+ whitening tokens to half"] == pytest.approx(100 + 100 * 20 / 50)
    assert np.isnan(row["TopK ReLU tokens to half"])  # 12 % of 20 %: not within the curve


def test_seeds_become_a_median_in_which_never_is_longer_than_any_time(tmp_path: Path) -> None:
    curves = {1: [80.0, 40.0, 40.0], 2: [60.0, 60.0, 60.0], 3: [70.0, 50.0, 50.0]}
    for seed, curve in curves.items():
        ends = dict(dead_pct_init_topk=curve[0], **trained(dead_pct_final_topk=curve[-1]))
        store_run(tmp_path, make_record(run_id=str(seed), seed=seed, **ends), make_curve(curve))
    row: Any = recovery(read(tmp_path)).iloc[0]
    assert tuple(row[["runs", "TopK init", "TopK end"]]) == (3, 70, 50)
    assert np.isnan(row["TopK tokens to half"])  # two of three never
    store_run(tmp_path, make_record(run_id="4", seed=4, dead_pct_init_topk=80.0, **trained()), make_curve([80, 0, 0]))
    store_run(tmp_path, make_record(run_id="5", seed=5, dead_pct_init_topk=80.0, **trained()), make_curve([80, 20, 0]))
    assert recovery(read(tmp_path))["TopK tokens to half"][0] == 100  # of 50, 67, 100, never, never


def test_a_time_that_no_run_could_have_has_no_column(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(dead_pct_init_topk=50.0, dead_pct_init_relu=0.0, **trained()), make_curve([50, 50]))
    table = recovery(read(tmp_path))
    assert "TopK ReLU tokens to half" not in table  # nothing was dead by ReLU
    assert "TopK tokens to half" in table  # half was not reached
    assert "+ AuxK end" not in table


def test_planted_has_a_row_per_gamma_with_the_closed_form_of_the_uncentered(tmp_path: Path) -> None:
    for gamma in (5.0, 2.0):
        theory = dict(theory_pct_topk=10 * gamma, theory_pct_relu=gamma)
        store_conditions(tmp_path, f"g{gamma}", planted_gamma=gamma, gamma=gamma, **theory)
    store_conditions(tmp_path, "natural")
    table: Any = planted(read(tmp_path))
    assert list(table["planted γ"]) == [2, 5]
    assert list(table["closed form TopK"]) == [20, 50]
    assert list(table["closed form ReLU"]) == [2, 5]
    assert list(table["+ AuxK ReLU init"]) == [20, 20]
    assert list(table["+ AuxK ReLU end"]) == [1, 1]


def test_fates_count_every_feature_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    init, final = rng.integers(0, 3, 300).tolist(), rng.integers(0, 3, 300).tolist()
    for seed, half in enumerate((slice(0, 100), slice(100, 300))):  # two seeds are counted together
        record = make_record(run_id=str(seed), seed=seed, planted_gamma=4.0, **trained())
        store_run(tmp_path, record, features=make_features(init[half], final[half]))
    table = fates(read(tmp_path))
    names = ["alive", "never selected", "never positive"]
    assert list(table["at init"]) == names
    for before, row in enumerate(table.to_dict("records")):
        mine = [after for first, after in zip(init, final, strict=True) if first == before]
        assert row["features"] == len(mine)
        assert (row["planted γ"], row["condition"]) == (4.0, "TopK")
        for after, name in enumerate(names):
            assert row[f"{name} at end"] == pytest.approx(100 * mine.count(after) / len(mine))


def test_fates_leave_out_what_no_feature_had(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(**trained()), features=make_features([0, 0, 2], [0, 1, 2]))
    table = fates(read(tmp_path))
    assert list(table["at init"]) == ["alive", "never positive"]
    assert list(table["alive at end"]) == [50, 0]
    assert list(table["never positive at end"]) == [0, 100]


def naive_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return float(np.mean(wins))


def test_auc_matches_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(1)
    for sizes in ((1, 1), (3, 40), (25, 10)):
        positive, negative = (rng.integers(0, 9, n).astype(float) for n in sizes)  # many ties
        assert auc(positive, negative) == pytest.approx(naive_auc(positive, negative))
    assert np.isnan(auc(np.array([]), np.array([1.0])))
    assert np.isnan(auc(np.array([1.0]), np.array([])))


def test_alignment_is_near_1_where_the_dead_point_away_from_the_mean(tmp_path: Path) -> None:
    init, final = [2, 2, 1, 1, 0, 0], [2, 1, 0, 1, 0, 0]
    cosine = [-0.9, -0.8, -0.1, -0.5, -0.6, 0.7]
    store_run(tmp_path, make_record(gamma=3.0, **trained()), features=make_features(init, final, cosine))
    row: Any = alignment(read(tmp_path)).iloc[0]
    away = -np.array(cosine, dtype=np.float32)
    assert row["AUC dead by ReLU"] == 1 == naive_auc(away[:2], away[2:])
    assert row["AUC dead by TopK"] == naive_auc(away[:4], away[4:]) == 6 / 8
    assert row["AUC still dead"] == naive_auc(away[[0, 1, 3]], away[[2]]) == 1
    assert (row["dead by ReLU"], row["dead by TopK"]) == pytest.approx((100 / 3, 200 / 3))
    assert (row["recovered"], row["γ"]) == (25, 3)


def test_alignment_of_a_run_without_death_is_blank(tmp_path: Path) -> None:
    store_run(tmp_path, make_record(**trained()), features=make_features([0, 0], [0, 0], [0.1, 0.2]))
    row: Any = alignment(read(tmp_path)).iloc[0]
    assert row[["AUC dead by ReLU", "AUC dead by TopK", "AUC still dead", "recovered"]].isna().all()


def test_layers_of_a_model_become_medians() -> None:
    table = pd.DataFrame(
        {
            "domain": "vision",
            "model": ["a", "a", "b"],
            "layer": [1, 2, 7],
            "γ": [1.0, 3.0, 5.0],
            "TopK end": [0.0, 4, 9],
        }
    )
    found = recovery_by_model(table)
    assert list(found["layers"]) == ["2 layers", "layer 7"]
    assert list(found["γ"]) == [2, 5]
    assert list(found["TopK end"]) == [2, 9]


# --- figures


def drawn(results_dir: Path) -> dict[str, Any]:
    return dict(make_figures(read(results_dir)))


@pytest.mark.filterwarnings("error")  # a layout that fails only warns
def test_every_figure_is_drawn_of_natural_and_planted_runs(tmp_path: Path) -> None:
    for model in ("a", "efficientnet_lite0"):
        store_conditions(tmp_path, "natural", model=model)
        for gamma in (0.5, 3.0, 30.0):
            store_conditions(tmp_path, f"g{gamma}", model=model, planted_gamma=gamma, gamma=gamma)
    figures = drawn(tmp_path)
    names = ("planted_curves", "gamma_left", "recovery_bars", "recovery_time")
    assert set(figures) == {"death_curves", *names}
    for figure in figures.values():
        figure.draw_without_rendering()


def test_bars_stand_for_the_start_and_the_end_of_each_condition(tmp_path: Path) -> None:
    store_conditions(tmp_path, "a")
    (axes,) = drawn(tmp_path)["recovery_bars"].axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[h] for end in (40, 30, 20, 10) for h in (80, end, 80)]
    assert [text.get_text() for text in axes.texts] == ["40", "30", "20", "10"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a\nlayer 1\nγ 2"]


@pytest.mark.parametrize(("models", "rows"), [(1, 1), (7, 1), (14, 2), (19, 3)])
def test_bars_of_many_models_take_several_rows(models: int, rows: int) -> None:
    table = pd.DataFrame({"model": [f"m{i}" for i in range(models)], "layers": "layer 1", "γ": range(models)})
    figure = recovery_bars.draw(table.assign(**{"TopK init": 50.0, "TopK end": 10.0}))
    assert len(figure.axes) == rows
    assert sum(len(axes.get_xticks()) for axes in figure.axes) == models


def test_recovery_is_drawn_against_what_b_dec_leaves_of_gamma(tmp_path: Path) -> None:
    curve = make_curve([90] * 5, [20, 60, 40, 30, 10])  # b_dec holds half of the mean at the end
    store_run(tmp_path, make_record(run_id="a", gamma=2.0, n_eval=5000, **trained()), curve)
    store_run(tmp_path, make_record(run_id="b", gamma=40.0, n_eval=5000, **trained(), revival="auxk"), curve)
    for i, hidden in enumerate(({"centering": "on"}, {"freeze_b_dec": True}, {"sae": "relu"})):
        store_run(tmp_path, make_record(run_id=str(i), n_eval=5000, **trained() | hidden), curve)
    figure = drawn(tmp_path)["gamma_left"]
    plain, auxk, _colorbar = figure.axes
    assert [axes.get_title("left") for axes in (plain, auxk)] == ["TopK", "+ AuxK"]
    for axes, gamma in ((plain, 2), (auxk, 40)):  # from the most dead on
        (path,) = axes.collections[0].get_segments()
        np.testing.assert_allclose(path, np.transpose([gamma * np.array([0.875, 0.75, 0.625, 0.5]), [60, 40, 30, 10]]))
        np.testing.assert_allclose(axes.collections[1].get_offsets(), [[gamma / 2, 10]])
        left, right = axes.get_xlim()
        assert left > right  # training goes to the right
        at, percent = (np.asarray(along) for along in axes.lines[0].get_data())
        np.testing.assert_allclose(percent, 100 * norm.cdf(-norm.ppf(1 - 1 / 5000) / at), atol=1e-9)
    store_run(tmp_path, make_record(run_id="c", gamma=2.0, n_eval=100, **trained()), curve)
    assert not drawn(tmp_path)["gamma_left"].axes[0].lines  # of two numbers of tokens there is no one closed form
    store_run(tmp_path / "few", make_record(**trained()), make_curve([90] * 3, [0.0, 1.0, 0.0]))
    assert "gamma_left" not in drawn(tmp_path / "few")


def test_the_bias_is_drawn_over_the_steps_of_plain_and_frozen_runs_of_a_planted_gamma(tmp_path: Path) -> None:
    curve = make_curve([80, 60, 40]).assign(
        step=[0, 5, 10], mean_in_bias=[0.0, 0.5, 1.0], mean_in_features=[1.0, 0.5, 0.0], always_on=[2, 1, 0]
    )
    shown = ({"planted_gamma": 2.0}, {"planted_gamma": 2.0, "freeze_b_dec": True}, {"planted_gamma": 5.0})
    hidden = ({"planted_gamma": 2.0, "revival": "auxk"}, {"planted_gamma": 2.0, "centering": "on"}, {})
    for i, changes in enumerate((*shown, *hidden)):
        store_run(tmp_path, make_record(run_id=str(i), **trained(mean_in_bias=0.5) | changes), curve)
    bias, always_on, dead = drawn(tmp_path)["bias_takes_over"].axes
    assert [line.get_ydata().tolist() for line in bias.lines] == [[0, 50, 100]] * 3
    assert [line.get_linestyle() for line in bias.lines] == [":", "-", "-"]
    assert len({line.get_color() for line in bias.lines}) == 2
    assert always_on.lines[0].get_xydata().tolist() == [[0, 2], [5, 1], [10, 0]]
    assert dead.lines[0].get_ydata().tolist() == [0, 0, 0]
    relu, topk_only = drawn(tmp_path)["death_pathways"].axes
    assert relu.lines[0].get_ydata().tolist() == [0, 0, 0]
    assert topk_only.lines[0].get_ydata().tolist() == [80, 60, 40]
    store_conditions(tmp_path / "older", "a", planted_gamma=2.0)  # whose curves do not have the columns
    assert not {"bias_takes_over", "death_pathways"} & set(drawn(tmp_path / "older"))


def test_each_input_scale_has_a_panel_with_the_bias_s_half_and_the_centered_run(tmp_path: Path) -> None:
    shown = {"step": [0, 500, 1000], "mean_in_bias": [0, 0.25, 0.75], "dead_pct_relu": [10, 30, 20]}
    curve = make_curve([80, 60, 40]).assign(**shown, mean_in_features=0.0, always_on=0)
    runs = (
        {"input_scale": "none"},
        {"input_scale": "unit"},
        {"input_scale": "unit", "centering": "on"},
        {"input_scale": "unit", "planted_gamma": 5.0},
    )
    for i, changes in enumerate(runs):
        store_run(
            tmp_path, make_record(run_id=str(i), **trained(mean_in_bias=0.75) | {"planted_gamma": 2.0} | changes), curve
        )
    figure = drawn(tmp_path)["input_scales"]
    paper, unit = figure.axes
    assert (paper.get_title(loc="left"), unit.get_title(loc="left")) == (
        "Tokens: as they are", "Tokens: mean square 1",
    )  # fmt: skip
    lines = [line for line in unit.lines if len(line.get_xdata()) == 3]
    assert sorted(line.get_linestyle() for line in lines) == ["-", "-", ":"]
    assert [len(axes.lines) for axes in (paper, unit)] == [2, 6]  # a dot each: all four have come to half
    dot = next(line for line in paper.lines if line.get_marker() == "o")
    assert dot.get_xydata().tolist() == [[750, 25]]
    store_conditions(tmp_path / "older", "a", planted_gamma=2.0)  # whose records do not name a scale
    assert "input_scales" not in drawn(tmp_path / "older")


def test_steps_to_half_of_the_mean_are_of_runs_whose_bias_began_without_it(tmp_path: Path) -> None:
    shares = {"halfway": [0, 0.25, 0.75], "never": [0, 0.1, 0.2], "began": [0.4, 0.5, 1.0], "turned": [0, 1.5, 0.2]}
    for name, share in shares.items():
        curve = make_curve([80, 60, 40]).assign(step=[0, 500, 1000], mean_in_bias=share)
        store_run(tmp_path, make_record(run_id=name, planted_gamma=2.0, **trained()), curve)
    runs = read(tmp_path).trained.runs.set_index("run_id")["half_bias"]
    assert runs.dropna().to_dict() == {"halfway": 750, "never": np.inf, "turned": pytest.approx(500 / 3)}


def test_over_seeds_lines_are_medians_in_bands(tmp_path: Path) -> None:
    for gamma, found in {2.0: [0.9, 0.8, 0.4], 5.0: [0.5, 0.5, 0.5]}.items():
        for seed, mmcs in enumerate(found):
            ends = trained(mmcs=mmcs) | {"planted_gamma": gamma, "sae_seed": seed}
            store_run(tmp_path, make_record(run_id=f"{gamma}{seed}", **ends))
    (axes,) = drawn(tmp_path)["mmcs_by_gamma"].axes
    assert axes.lines[0].get_xydata().tolist() == [[2, 0.8], [5, 0.5]]
    corners = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} >= {(2, 0.4), (2, 0.9), (5, 0.5)}


def test_a_run_that_never_comes_to_half_has_a_triangle_at_its_end(tmp_path: Path) -> None:
    store_conditions(tmp_path, "a", planted_gamma=2.0)
    for run_id, curve in (("slow", [80.0, 70.0]), ("nothing", [0.0, 0.0])):
        ends = dict(planted_gamma=4.0, dead_pct_init_topk=curve[0], dead_pct_init_relu=0.0)
        store_run(tmp_path, make_record(run_id=run_id, **ends, **trained()), make_curve(curve))
    topk, relu = drawn(tmp_path)["recovery_time"].axes
    triangles = {line.get_marker(): line for line in topk.lines if len(line.get_xdata()) and line.get_marker() == "^"}
    assert triangles["^"].get_ydata().tolist() == [1000]  # 100 steps of 10 tokens
    assert triangles["^"].get_xdata().tolist() == [4]
    points = [tokens for line in topk.lines if line.get_marker() in "osDv" for tokens in line.get_ydata()]
    assert sorted(points) == pytest.approx([140, 150, 100 + 100 * 20 / 30, 200])  # from 60 % down to 10 ... 40 %
    assert sum(len(line.get_xdata()) for line in relu.lines if line.get_marker() == "^") == 4


def test_planted_curves_have_a_panel_per_gamma_and_rows_per_source(tmp_path: Path) -> None:
    for model, gammas in {"a": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), "b": (2.0,)}.items():
        for gamma in gammas:
            store_conditions(tmp_path, f"g{gamma}", model=model, planted_gamma=gamma)
    panels = [axes for axes in drawn(tmp_path)["planted_curves"].axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [*(f"a, layer 1\nγ = {i}" for i in range(1, 7)), "b, layer 1\nγ = 2"]
    assert all(len(axes.lines) == 2 * 4 for axes in panels)  # ReLU and TopK in each condition
    assert len({line.get_linestyle() for line in panels[0].lines}) == 4
