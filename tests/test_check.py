"""`check=true` says what one batch of a model gives; errors of loaders and data come out as their own sentence."""

import re
from pathlib import Path

import numpy as np
import pytest

from sae_outliers.runs.identity import store_directory
from sae_outliers.runs.smoke_test import check_model
from sae_outliers.utils.instantiate import instantiate
from tests.conftest import Run, composed


@pytest.mark.weights
def test_it_prints_shapes_gamma_and_memory_and_leaves_nothing_on_the_disk(command: Run, tmp_path: Path) -> None:
    done = command("sae_outliers.run", "model=offline/minilm", "layer=[2,6]", "check=true", "tracker=none")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "minilm: 6 blocks, 2.271e+07 parameters, loaded in" in said
    assert re.search(r"layer 2: \d+ tokens x 384, γ post-LN 0\.\d+, γ raw", said)

    assert "one batch of 8 item(s) (input_ids [8, 256], attention_mask [8, 256]) took" in said
    assert not (tmp_path / "activations").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.weights
def test_a_width_that_is_not_the_models_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer 3 is 384 wide, but model\.d_model=512"):
        check_model(composed("model=offline/minilm", "model.d_model=512"), [3])


def test_data_without_an_item_are_named() -> None:
    cfg = composed("model=synthetic/sparse", "data.source={_target_: tests.test_check.nothing}")
    with pytest.raises(ValueError, match="data=numbers produced no items for synthetic"):
        check_model(cfg, [1])


def nothing() -> object:
    return lambda seed: iter(())


def test_an_error_of_a_constructor_comes_out_as_it_was_raised() -> None:
    with pytest.raises(ValueError, match=r"^pieces of 5 bases cannot overlap by 7$"):
        instantiate({"_target_": "sae_outliers.data.dna.HumanDna", "piece": 5, "overlap": 7})


@pytest.mark.parametrize(("arguments", "message"), [
    (["model=dump"], "this model needs to be told which: add name=, or path= for model=dump"),
    (["model=timm", "name=no_such_model"], "has no model 'no_such_model'"),
    (["model=evo"], "is run by Python code from togethercomputer/evo-1-131k-base at revision"),
])  # fmt: skip
def test_what_is_missing_is_said_in_a_line_without_a_traceback(
    command: Run, arguments: list[str], message: str
) -> None:
    done = command("sae_outliers.run", *arguments, "layer=middle", "check=true", "tracker=none")
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_stored_activations_that_changed_in_place_are_other_activations(tmp_path: Path) -> None:
    path = tmp_path / "activations.npy"
    rng = np.random.default_rng(0)
    cfg = composed("model=dump", f"path={path}")
    np.save(path, rng.normal(size=(100, 8)).astype(np.float32))
    before = store_directory(cfg)
    assert store_directory(cfg) == before
    np.save(path, rng.normal(size=(101, 8)).astype(np.float32))
    assert store_directory(cfg) != before
