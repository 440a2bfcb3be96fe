"""Two values of any setting that determines a result are never merged: they are refused, or each has its row."""

from typing import Any

import pandas as pd
import pytest

from sae_outliers.analysis.select import COLUMNS, check_mixed, describe_mix, measured_once, mixed_settings, select
from sae_outliers.config import role_of, roles
from tests.test_tables import frame, make_record, trained

SETTINGS: dict[str, Any] = {
    "model.name": "a",
    "model.loader._target_": "x.load",
    "model.loader.context": 256,
    "data.name": "text",
    "data.source._target_": "x.Text",
    "data.source.corpora": ["topics", "docstrings"],
    "sae.name": "topk",
    "sae.n_features": 8192,
    "sae.k": 64,
    "init.name": "random",
    "init.b_dec": "zeros",
    "init.blend": 0.8,
    "centering.name": "off",
    "preprocessing": "postln",
    "special_tokens": False,
    "n_eval": 20_000,
    "seed": 0,
    "sae_seed": 0,
}
TRAINING: dict[str, Any] = {
    "revival.name": "none",
    "precision": "float32",
    "train.steps": 100,
    "train.batch_size": 10,
    "train.n_tokens": 1000,
    "train.lr": 3e-4,
    "train.warmup_steps": 50,
    "train.decay_from": 0.8,
    "train.eval_every": 50,
    "train.dead_window": 1000,
}
DETERMINING = [
    key for key, role in roles().items() if role.affects != "nothing" and key not in ("model.loader", "data.source")
]
OPEN = ["model.loader.context", "data.source.corpora", "sae.sparsity", "revival.alpha", "an.option.of.a.later.version"]


def records(key: str, one: Any, other: Any) -> pd.DataFrame:
    """Two trained records that differ in one setting and in nothing else."""
    given = [SETTINGS | TRAINING | {key: value} for value in (one, other)]
    values = [{name: value for name, value in settings.items() if value is not None} for settings in given]
    columns = {"lr": 3e-4, "b_dec_lr": 3e-4}
    return frame(*(make_record(run_id=str(i), settings=s, **trained(**columns)) for i, s in enumerate(values)))


def is_axis(key: str) -> bool:
    try:
        return role_of(key).axis
    except KeyError:
        return False


@pytest.mark.parametrize("key", [key for key in [*DETERMINING, *OPEN] if not is_axis(key)])
@pytest.mark.parametrize("values", [(5, 6), (None, 6)], ids=["two values", "one and null"])
def test_two_values_of_a_setting_are_refused_and_named(key: str, values: tuple[Any, Any]) -> None:
    rows = records(key, *values)
    assert not mixed_settings(rows[:1])
    with pytest.raises(ValueError, match="do not belong in one table") as error:
        check_mixed(rows, allow=False)
    assert f"differ in {COLUMNS.get(key, key)} " in str(error.value)
    assert mixed_settings(select(rows, "run_id == '0'")) == []


@pytest.mark.parametrize("key", [key for key in DETERMINING if role_of(key).affects != "training"])
def test_at_initialisation_each_value_is_a_figure_of_its_own(key: str) -> None:
    assert len(measured_once(records(key, 5, 6), by_sae=True)) == 2
    assert len(measured_once(records(key, 5, 5), by_sae=True)) == 1


@pytest.mark.parametrize("key", [key for key in DETERMINING if role_of(key).affects == "training"])
def test_the_training_makes_no_figure_at_initialisation(key: str) -> None:
    assert len(measured_once(records(key, 5, 6))) == 1


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("data.source.corpora", (["docstrings"], ["topics", "docstrings"]), "([docstrings] in 1, [topics, docstrings]"),
        ("init.rank", (8, 300), "init.rank (8 in 1, 300 in 1 of the records)"),
        ("model.loader.context", (32, 256), "model.loader.context of model=a (32 in 1, 256 in 1 of the records)"),
        ("data.tokens_per_item", (None, 8), "data.tokens_per_item of model=a (8 in 1, null in 1 of the records)"),
        ("init.blend", (0.5, 0.9), "init.blend (0.5 in 1, 0.9 in 1 of the records)"),
        ("train.b_dec_lr", (3e-4, 1e-4), "b_dec_lr of fast_b_dec=False (0.0001 in 1, 0.0003 in 1 of the records)"),
    ],
)
def test_what_differs_is_said_with_its_values(key: str, values: tuple[Any, Any], said: str) -> None:
    assert said in describe_mix(mixed_settings(records(key, *values)))


def test_models_may_differ_in_data_and_loader_and_types_in_their_options() -> None:
    own = {"model.name": "b", "model.loader.context": 9, "data.name": "dna", "files": [["b.npy", 1, 2]]}
    rows = [
        make_record("a", settings=SETTINGS),
        make_record("b", settings=SETTINGS | own),
        make_record("a", sae="jumprelu", settings=SETTINGS | {"sae.name": "jumprelu", "sae.bandwidth": 0.1}),
    ]
    assert mixed_settings(frame(*rows)) == []


def test_files_that_changed_are_named_and_a_record_that_does_not_tell_passes() -> None:
    stamped = [SETTINGS | {"files": [["acts.npy", 10, when]]} for when in (1, 2)]
    assert mixed_settings(frame(make_record(settings=SETTINGS), make_record(layer=2, settings=stamped[0]))) == []
    (mix,) = mixed_settings(frame(*(make_record(layer=i, settings=s) for i, s in enumerate(stamped))))
    assert (mix.column, mix.only) == ("files", ("model", "a"))


def test_a_record_without_settings_is_compared_by_its_columns() -> None:
    told, silent = make_record(settings=SETTINGS), make_record(layer=2)
    assert mixed_settings(frame(told, make_record(layer=2, data="text"))) == []
    assert [mix.column for mix in mixed_settings(frame(told, silent))] == ["data"]
    assert [mix.column for mix in mixed_settings(frame(told, make_record(layer=2, data="text", k=3)))] == ["k"]


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("`init.rank` == 8", ["0"]),
        ("`data.source.corpora` == '[topics, docstrings]'", ["0", "1"]),
        ("`init.rank` > 8 and layer == 1", ["1"]),
    ],
)
def test_where_selects_by_any_option(where: str, left: list[str]) -> None:
    assert select(records("init.rank", 8, 300), where)["run_id"].tolist() == left
