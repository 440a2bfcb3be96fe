"""No two records that differ in a setting that affects a result are merged: for every setting of the schema."""

from typing import Any

import pandas as pd
import pytest

from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.select import COLUMNS, FILES, check_mixed, measured_once, select
from sae_outliers.analysis.tables.conditions import conditions
from sae_outliers.analysis.tables.models import models
from sae_outliers.config import role_of, roles
from tests.test_tables import frame, make_record, trained

ARGUMENTS = ("model.loader.context", "data.source.corpora", "sae.sparsity", "revival.alpha", FILES, "gone.since")
COMPARED = [key for key in (*roles(), *ARGUMENTS) if role_of(key).affects != "nothing" and not role_of(key).axis]
AXES = [key for key in roles() if role_of(key).axis]
IGNORED = [key for key in (*roles(), "model.loader.trust_remote_code") if role_of(key).affects == "nothing"]
VALUES: dict[str, tuple[Any, Any]] = {
    "data.source.corpora": (["docstrings"], ["topics"]),
    FILES: ([["a", 1]], [["a", 2]]),
}
SETTINGS = {"model.name": "a", "seed": 0, "sae_seed": 0, "n_eval": 20_000}


def pair(key: str, **columns: Any) -> pd.DataFrame:
    """Two trained records of a layer that are equal but for one setting."""
    one, two = VALUES.get(key, (1, 2))
    records = (
        make_record(run_id=str(value), settings=SETTINGS | {key: value}, **trained(**columns)) for value in (one, two)
    )
    return frame(*records)


@pytest.mark.parametrize("key", COMPARED)
def test_two_values_of_a_setting_are_refused_and_named(key: str) -> None:
    with pytest.raises(ValueError, match="differ in") as error:
        check_mixed(pair(key), allow=False)
    assert f"differ in {COLUMNS.get(key, key)} " in str(error.value)
    assert len(check_mixed(pair(key), allow=True)) == 1


@pytest.mark.parametrize("key", [key for key in COMPARED if role_of(key).affects != "training"])
def test_where_they_are_allowed_none_is_dropped(key: str) -> None:
    assert len(measured_once(pair(key), by_sae=True)) == 2
    assert len(measured_once(pair(key))) == (1 if role_of(key).within == "sae" else 2)


@pytest.mark.parametrize("key", [key for key in COMPARED if role_of(key).affects == "training"])
def test_a_setting_of_the_training_counts_among_trained_records_only(key: str) -> None:
    rows = pair(key).assign(train_steps=[0, 100])
    assert not check_mixed(rows, allow=False)
    assert len(measured_once(rows)) == 1


@pytest.mark.parametrize("key", IGNORED)
def test_what_affects_nothing_is_not_compared(key: str) -> None:
    assert not check_mixed(pair(key), allow=False)
    assert len(measured_once(pair(key))) == 1


@pytest.mark.parametrize("key", AXES)
def test_tables_tell_the_values_of_an_axis_apart(key: str) -> None:
    values: tuple[Any, Any] = {
        "data.rescale_mean": (None, 2.0),
        "train.freeze_b_dec": (False, True),
    }.get(key, ("one", "two"))
    rows = frame(
        *(
            make_record(settings=SETTINGS | {key: value}, **{COLUMNS[key]: value}, **trained(dead_pct_final_topk=end))
            for value, end in zip(values, (1.0, 9.0), strict=True)
        )
    )
    assert not check_mixed(rows, allow=False)
    if key == "data.rescale_mean":
        assert len(measured_once(rows)) == 2
        return
    shown = {"train.freeze_b_dec": "b_dec"}.get(key, COLUMNS[key])
    found: Any = conditions(Inputs(rows)).groupby(shown)["end TopK"].last()
    assert tuple(found[list({"train.freeze_b_dec": ("", "frozen b_dec")}.get(key, values))]) == (1, 9)


@pytest.mark.parametrize("key", [key for key in COMPARED if role_of(key).within == "model"])
def test_each_model_has_data_and_a_loader_of_its_own(key: str) -> None:
    rows = pair(key).assign(model=["a", "b"])
    assert not check_mixed(rows, allow=False)


def test_files_are_compared_only_where_they_are_recorded() -> None:
    rows = frame(make_record(settings=SETTINGS), make_record(settings=SETTINGS | {FILES: [["a", 1]]}))
    assert not check_mixed(rows, allow=False)
    assert len(measured_once(rows)) == 1


def test_a_record_that_lost_its_settings_is_compared_by_its_columns() -> None:
    known = SETTINGS | {"sae.n_features": 8192, "sae.k": 64, "model.loader.context": 32, "preprocessing": "postln"}
    known |= {"init.name": "random", "init.b_dec": "zeros", "special_tokens": False, "data.name": "x"}
    known |= {"sae.name": "topk", "centering.name": "off"}
    rows = frame(make_record(settings=known), make_record(layer=2), make_record())
    assert not check_mixed(rows, allow=False)
    assert len(measured_once(rows)) == 2
    with pytest.raises(ValueError, match=r"differ in n_eval \(7 in 1, 20000 in 1 of the records\)"):
        check_mixed(frame(make_record(settings=known), make_record(layer=2, n_eval=7)), allow=False)


def test_a_whole_number_is_the_same_setting_as_an_integer_or_a_float() -> None:
    rows = frame(*(make_record(settings=SETTINGS | {"init.blend": value}) for value in (1, 1.0)))
    assert not check_mixed(rows, allow=False)
    assert len(measured_once(rows)) == 1


def test_where_names_options_in_backticks() -> None:
    rows = pair("data.tokens_per_item")
    assert list(select(rows, "`data.tokens_per_item` == 2 and `model.name` == 'a'")["run_id"]) == ["2"]
    assert list(select(pair("data.source.corpora"), "`data.source.corpora` == '[\"topics\"]'")["run_id"]) == [
        "['topics']"
    ]


def test_every_allowed_setting_of_a_layer_has_its_part_in_the_figures_of_its_model() -> None:
    rows = pair("data.tokens_per_item").assign(gamma=[1.0, 3.0], dead_pct_init_topk=[10.0, 50.0])
    found: Any = models(Inputs(rows)).iloc[0]
    assert tuple(found[["layers", "γ min", "γ median", "γ max"]]) == (1, 1, 2, 3)
    assert tuple(found[["TopK off median", "TopK off worst"]]) == (30, 50)
