"""Tables against scipy, hand-computed cases and data whose answer is known by construction."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, spearmanr

from sae_outliers.analysis import stats
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.reference import merge_published
from sae_outliers.analysis.select import describe_mix, measured_once, mixed_settings
from sae_outliers.analysis.tables.conditions import conditions
from sae_outliers.analysis.tables.coverage import coverage
from sae_outliers.analysis.tables.models import models
from sae_outliers.analysis.tables.spearman import PAIRS, spearman
from sae_outliers.analysis.tables.theory import theory
from sae_outliers.analysis.write import Table, write_table
from sae_outliers.runs.record import Record
from sae_outliers.utils.cells import format_for_display

# what a record says of a field that a test does not set
BLANK: dict[Any, Any] = {
    int: 0,
    str: "x",
    float: 1.0,
    bool: False,
    dict[str, str]: {},
    dict[str, Any]: None,  # settings: compared by the columns
    list[list[float]]: [],
    float | None: None,
    int | None: None,
}


def make_record(model: str = "a", layer: int = 1, **changes: Any) -> Record:
    """A record of no run; what is not named is blank."""
    values = {field.name: BLANK[field.type] for field in fields(Record)}
    named = dict(model=model, layer=layer, domain="language", last_layer=4, sae="topk", revival="none", centering="off")
    sizes = dict(preprocessing="postln", n_eval=20_000, n_features=8192, k=64, schema_version=1, d_model=64)
    kinds = dict(init="random", init_b_dec="zeros", precision="float32", sae_options="{}", revival_options="{}")
    return Record(**values | {"run_id": f"{model}{layer}"} | named | sizes | kinds | changes)


def trained(**changes: Any) -> dict[str, Any]:
    """The columns that training adds."""
    dead = dict(dead_pct_final=5.0, dead_pct_final_topk=5.0, dead_pct_final_relu=1.0, dead_pct_final_window=6.0)
    return {"train_steps": 100, "train_batch_size": 10, "fvu": 0.2, "l0": 64.0} | dead | changes


def frame(*records: Record) -> pd.DataFrame:
    return pd.DataFrame([asdict(record) for record in records])


def many_layers(models: int = 4, layers: int = 6, seed: int = 0) -> pd.DataFrame:
    """Layers whose deaths follow γ with noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in range(models):
        for layer in range(1, layers + 1):
            gamma = rng.uniform(0.5, 4)
            relu = max(0.0, 10 * (gamma - 2) + rng.normal(0, 3))
            figures = dict(
                gamma=gamma,
                gamma_raw=rng.uniform(1, 2),
                effective_rank=rng.uniform(5, 50),
                dead_pct_init_relu=relu,
                dead_pct_init_topk=relu + rng.uniform(0, 30),
            )
            domain = ("language", "protein")[model % 2]
            rows.append(make_record(f"m{model}", layer, domain=domain, last_layer=layers, **figures))
    return frame(*rows)


# --- Spearman


def test_spearman_of_a_hand_computed_case() -> None:
    gammas, deaths = (1, 2, 3, 4, 5), (10.0, 20.0, 40.0, 30.0, 50.0)
    rows = [
        make_record("m", i, gamma=float(g), dead_pct_init_topk=d, dead_pct_init_relu=0.0)
        for i, (g, d) in enumerate(zip(gammas, deaths, strict=True))
    ]
    found: Any = spearman(Inputs(frame(*rows))).set_index(["domain", "severity", "death"])
    row: Any = found.loc[("all", "γ post-LN", "TopK")]
    assert row["ρ"] == pytest.approx(1 - 6 * 2 / (5 * 24))  # 1 - 6 Σd² / (n (n²-1))
    assert (row["layers"], row["models"]) == (5, 1)
    assert np.isnan(row["ρ over models low"])  # one model cannot be resampled
    assert row["ρ over layers low"] <= row["ρ"] <= row["ρ over layers high"]
    assert np.isnan(found.loc[("all", "γ post-LN", "ReLU"), "ρ"])  # no feature is dead anywhere


def test_a_perfect_order_has_no_interval() -> None:
    rows = [make_record("m", i, gamma=float(i), dead_pct_init_topk=10.0 * i) for i in range(6)]
    row: Any = spearman(Inputs(frame(*rows))).iloc[0]
    assert row["ρ"] == 1
    assert np.isnan(row["ρ over layers low"])


@pytest.mark.filterwarnings("error")
def test_degenerate_tables_are_blank_and_silent() -> None:
    for rows in (
        frame(make_record()),
        frame(make_record(), make_record(layer=2)),
        many_layers().assign(gamma=1.0),
    ):
        found = spearman(Inputs(rows))
        assert found.loc[found["severity"] == "γ post-LN", "ρ"].isna().all()
    assert spearman(Inputs(many_layers().assign(centering="on"))).empty


def test_resampled_ranks_match_scipy_on_copied_rows() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 8, 30).astype(float), rng.integers(0, 4, 30).astype(float)  # many ties
    counts = stats.draw_units(pd.Series(np.arange(30) // 3), 20, seed=2)
    found = stats.weighted_correlation(stats.weighted_ranks(x, counts), stats.weighted_ranks(y, counts), counts)
    for row, value in zip(counts.astype(int), found, strict=True):
        assert value == pytest.approx(spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic)


def test_resamples_take_whole_units() -> None:
    unit = pd.Series(["a", "a", "b", "c", "c", "c"])
    counts = stats.draw_units(unit, 200, seed=0)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, [3]] == counts[:, 3:]).all()
    assert (counts[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_interval_over_layers_covers_the_true_correlation() -> None:
    """Normal samples with Pearson 0.8 have Spearman 6/π asin(0.4) in the population."""
    truth, hits = 6 / np.pi * np.arcsin(0.4), 0
    for seed in range(40):
        z = np.random.default_rng(seed).normal(size=(2, 60))
        sample = pd.DataFrame({"gamma": z[0], "dead_pct_init_topk": 0.8 * z[0] + 0.6 * z[1]})
        sample[["gamma_raw", "effective_rank", "dead_pct_init_relu", "dead_pct_topk_only"]] = 1.0
        unit = pd.Series(range(60))
        low, high = stats.bootstrap_spearman(sample, PAIRS, unit, 3, 400, seed)["gamma", "dead_pct_init_topk"]
        hits += low <= truth <= high
    assert hits >= 34  # 38 expected


def test_spearman_by_domain_is_seeded_and_matches_scipy() -> None:
    rows = many_layers()
    found: Any = spearman(Inputs(rows))
    pd.testing.assert_frame_equal(found, spearman(Inputs(rows)))
    assert list(found["domain"].unique()) == ["all", "language", "protein"]
    for (domain, severity), name in {
        ("protein", "γ raw"): "gamma_raw",
        ("all", "γ post-LN"): "gamma",
    }.items():
        mine = rows if domain == "all" else rows[rows["domain"] == domain]
        row: Any = found.set_index(["domain", "severity", "death"]).loc[(domain, severity, "ReLU")]
        assert row["ρ"] == pytest.approx(spearmanr(mine[name], mine["dead_pct_init_relu"]).statistic)
    by_domain = found.set_index("domain")["ρ over models low"]
    assert by_domain["all"].notna().all()
    assert by_domain["protein"].isna().all()  # two models


# --- which records may stand together


def test_no_layer_counts_twice() -> None:
    once = measured_once(
        frame(
            make_record(run_id="init"),
            make_record(run_id="relu", sae="relu", **trained()),
            make_record(run_id="trained", **trained()),
            make_record(run_id="on", centering="on"),
            make_record(run_id="other seed", seed=1),
            make_record(layer=2, run_id="second layer", sae="relu"),
        )
    )
    assert list(once["run_id"]) == ["trained", "on", "other seed", "second layer"]


def test_each_sae_keeps_its_record_where_the_type_is_a_condition() -> None:
    rows = frame(make_record(run_id="t"), make_record(run_id="r", sae="relu"), make_record(run_id="t2", **trained()))
    assert set(measured_once(rows, by_sae=True)["run_id"]) == {"t2", "r"}


@pytest.mark.parametrize(
    "changes", [{"init": "datapoint"}, {"init_b_dec": "mean"}, {"sae_seed": 7}, {"planted_gamma": 3.0}]
)
def test_what_changes_an_sae_at_initialisation_makes_it_a_figure_of_its_own(changes: dict[str, Any]) -> None:
    rows = frame(make_record(run_id="a"), make_record(run_id="b", **changes), make_record(run_id="c", revival="auxk"))
    assert list(measured_once(rows)["run_id"]) == ["a", "b"]


def test_mixed_settings_are_found_and_described() -> None:
    rows = frame(make_record(), make_record(layer=2), make_record(layer=3, n_eval=100, schema_version=2))
    mixed = mixed_settings(rows)
    assert [mix.setting for mix in mixed] == ["schema_version", "n_eval"]
    text = "schema_version (1 in 2, 2 in 1 of the records); n_eval (100 in 1, 20000 in 2 of the records)"
    assert describe_mix(mixed) == text


def test_training_settings_count_among_trained_records_only() -> None:
    first, second = make_record(**trained(lr=1.0)), make_record(layer=2, **trained(lr=2.0))
    assert not mixed_settings(frame(first, make_record(layer=2, lr=2.0)))
    assert [mix.setting for mix in mixed_settings(frame(first, second))] == ["lr"]


def test_an_option_of_a_revival_may_differ_between_revivals_but_not_within_one() -> None:
    plain, one = make_record(**trained()), make_record(**trained(revival="auxk", revival_options='{"a": 1}'))
    untrained, two = (
        make_record(layer=2, revival="auxk", revival_options='{"a": 2}', **end) for end in ({}, trained())
    )
    assert not mixed_settings(frame(plain, one, untrained))
    mixed = mixed_settings(frame(plain, one, two))
    assert describe_mix(mixed) == "revival.a of revival=auxk (1 in 1, 2 in 1 of the records)"


@pytest.mark.parametrize("end", [{}, trained()], ids=["untrained", "trained"])
def test_an_option_of_an_sae_may_differ_between_types_but_not_within_one(end: dict[str, Any]) -> None:
    """It may change where the SAE starts from, so it counts without training, too."""
    plain, one = make_record(**end), make_record(sae="relu", sae_options='{"a": 1}', **end)
    assert not mixed_settings(frame(plain, one))
    mixed = mixed_settings(frame(plain, one, make_record(layer=2, sae="relu", sae_options='{"a": 2}', **end)))
    assert describe_mix(mixed) == "sae.a of sae=relu (1 in 1, 2 in 1 of the records)"


def test_the_initial_bias_may_differ_between_centerings_trained_or_not() -> None:
    off, median = make_record(), make_record(centering="geometric_median", init_b_dec="geometric_median")
    assert not mixed_settings(frame(off, median))
    mixed = mixed_settings(frame(off, median, make_record(layer=2, init_b_dec="mean")))
    assert [(mix.setting, mix.scope and mix.scope.label) for mix in mixed] == [("init_b_dec", "centering=off")]


def test_coverage_counts_and_names_what_is_missing() -> None:
    rows = frame(
        make_record("a", 1, **trained()),
        make_record("a", 1, revival="auxk", **trained()),
        make_record("a", 3),
        make_record("a", 3, seed=1),
        make_record("af", 0, last_layer=0),
        make_record("a", 1, centering="on"),
    )
    off, on = coverage(Inputs(rows)).to_dict("records")
    assert (off["layers"], off["expected"], off["trained"], off["missing"]) == (3, 5, 1, "a 2, 4")
    assert (off["trained auxk"], on["trained auxk"]) == (1, 0)
    assert (on["layers"], on["missing"]) == (1, "a 2-4; af all")
    listed = coverage(Inputs(rows, expected={"a": range(1, 5), "big": range(1, 11)})).iloc[0]
    assert (listed["layers"], listed["expected"], listed["missing"]) == (3, 15, "a 2, 4; big all")


# --- models, conditions, theory


def test_models() -> None:
    rows = frame(
        *(make_record("a", i, gamma=g, dead_pct_init_topk=10 * g) for i, g in ((1, 1.0), (2, 2.0), (4, 6.0))),
        make_record("a", 2, centering="on", gamma=2.0, dead_pct_init_topk=3.0),
    )
    row: Any = models(Inputs(rows)).iloc[0]
    assert (row["layers"], row["expected"]) == (3, 4)
    assert tuple(row[["γ min", "γ median", "γ max"]]) == (1, 2, 6)
    assert tuple(row[["TopK off median", "TopK off worst", "TopK on median", "TopK on worst"]]) == (
        20,
        60,
        3,
        3,
    )


def test_conditions_take_the_end_from_trained_records() -> None:
    rows = frame(
        make_record("a", 1, dead_pct_init_topk=80.0),
        make_record("a", 2, dead_pct_init_topk=20.0, **trained(dead_pct_final_topk=4.0)),
        make_record("b", 1, dead_pct_init_topk=50.0, **trained(dead_pct_final_topk=8.0)),
        make_record("b", 1, dead_pct_init_topk=50.0),
        make_record("b", 1, centering="on", dead_pct_init_topk=0.0),
    )
    found: Any = conditions(Inputs(rows)).set_index(["model", "centering"])
    over_all: Any = found.loc[("all", "off")]
    assert (over_all["layers"], over_all["init TopK"]) == (3, 50)
    assert (over_all["trained layers"], over_all["trained init TopK"], over_all["end TopK"]) == (2, 35, 6)
    assert found.loc[("a", "off"), "init TopK"] == 50
    assert found.loc[("b", "on"), "trained layers"] == 0
    assert np.isnan(found.loc[("b", "on"), "end TopK"])


def test_conditions_tell_revivals_apart_at_the_end_only() -> None:
    rows = frame(
        make_record("a", 1, dead_pct_init_topk=80.0),
        make_record("a", 2, dead_pct_init_topk=20.0, **trained(dead_pct_final_topk=4.0, dead_pct_final=3.0)),
        make_record("a", 2, dead_pct_init_topk=20.0, revival="auxk", **trained(dead_pct_final_topk=1.0)),
        make_record("a", 2, dead_pct_init_topk=0.0, centering="on"),
    )
    found: Any = conditions(Inputs(rows))
    mine = found[found["model"] == "a"].drop(columns="model")
    assert list(zip(mine["revival"], mine["centering"], strict=True)) == [
        ("none", "off"),
        ("auxk", "off"),
        ("none", "on"),
    ]
    assert list(mine["init TopK"]) == [50, 50, 0]
    assert list(mine["end TopK"])[:2] == [4, 1]
    assert list(mine["end inactive"])[:2] == [3, 5]


def test_theory_finds_a_known_error() -> None:
    """Deaths drawn from the closed forms of the paper, then shifted by known amounts."""
    rows, shifts = [], (2.0, -4.0, 5.0, 1.0)
    for layer, (gamma, shift) in enumerate(zip((1.0, 2.0, 3.0, 4.0), shifts, strict=True)):
        reach = norm.ppf(1 - 1 / 20_000) / gamma
        topk, relu = 100 * norm.cdf(norm.ppf(1 - 64 / 8192) - reach), 100 * norm.cdf(-reach)
        forms = dict(theory_pct_topk=topk, theory_pct_relu=relu, theory_pct_topk_small_gamma=topk + 1)
        domain = "vision" if layer < 2 else "protein"
        measured = dict(dead_pct_init_topk=topk - shift, dead_pct_init_relu=relu)
        rows.append(make_record("m", layer, domain=domain, gamma=gamma, **forms, **measured))
    found: Any = theory(Inputs(frame(*rows, make_record("m", 9, centering="on")))).set_index(["domain", "formula"])
    assert tuple(found.loc[("all", "TopK"), ["layers", "MAE", "bias"]]) == pytest.approx((4, 3.0, 1.0))
    small = found.loc[("all", "TopK, small-γ threshold"), ["MAE", "bias"]]
    assert tuple(small) == pytest.approx((3.5, 2.0))  # errors 3, -3, 6, 2
    assert tuple(found.loc[("vision", "TopK"), ["MAE", "bias"]]) == pytest.approx((3.0, -1.0))
    assert tuple(found.loc[("all", "ReLU"), ["MAE", "bias"]]) == pytest.approx((0, 0))


def test_beside_matches_on_keys_and_keeps_both_sides() -> None:
    published = pd.DataFrame({"model": ["z", "a"], "n": [1, 2], "γ": [1.0, 2.0]})
    own = pd.DataFrame({"model": ["a", "new"], "n": [3, 4], "γ": [3.0, 4.0]})
    found = merge_published(published, own, ["model"])
    assert list(found) == ["model", "own n", "published n", "own γ", "published γ"]
    assert list(found["model"]) == ["z", "a", "new"]
    assert format_for_display(found)["own n"].to_list() == ["", "3", "4"]
    assert list(merge_published(published, None, ["model"])) == ["model", "published n", "published γ"]


# --- writing


def test_written_tables(tmp_path: Path) -> None:
    rows = pd.DataFrame({"model_name": ["a_b"], "ρ": [0.12345], "ρ low": [0.1], "ρ high": [np.nan], "dead": [-0.01]})
    write_table(Table("t", rows.assign(**{"x low": 1.0, "x high": 2.0}), "γ of 5 % in a_b."), tmp_path)
    assert pd.read_csv(tmp_path / "t.csv")["ρ"][0] == 0.12345
    markdown, latex = (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()
    assert markdown.endswith("\n\nγ of 5 % in a_b.\n")
    cells = [cell.strip() for cell in markdown.splitlines()[2].strip("|").split("|")]
    assert cells == ["a_b", "0.123", "", "0.0", "[1.0, 2.0]"]
    assert r"a\_b & 0.123 &  & 0.0 & [1.0, 2.0] \\" in latex
    assert r"\caption{$\gamma$ of 5 \% in a\_b.}" in latex
    assert latex.isascii()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.md", "t.tex"]
