"""`check=true` says what one batch of a model gives; errors of loaders and data come out as their own sentence."""

import os
import re
import time
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from omegaconf import OmegaConf

from sae_outliers.runs.former_ids import former_run_digests
from sae_outliers.runs.identity import run_directories, run_settings, store_directory
from sae_outliers.runs.smoke_test import check_model
from sae_outliers.utils.instantiate import instantiate
from tests.conftest import Run, composed


@pytest.mark.weights
def test_it_prints_shapes_gamma_and_memory_and_leaves_nothing_on_the_disk(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", "model=offline/minilm", "layer=[2,6]", "check=true", "tracker=none")
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
def test_what_is_missing_is_said_in_a_line_without_a_traceback(here: Run, arguments: list[str], message: str) -> None:
    done = here("sae_outliers.run", *arguments, "layer=middle", "check=true", "tracker=none")
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


@pytest.mark.parametrize(("overrides", "file"), [
    (["+model.loader.weights={}/weights.bin"], "weights.bin"),
    (["model.loader.checkpoint={}/checkpoint"], "checkpoint/model.safetensors"),
    (["data=text_files", "data.source.files={}/notes.txt"], "notes.txt"),
    (["data=text_files", "data.source.files=[{}/notes.txt,{}/more/*.txt]"], "more/b.txt"),
    (["data=image_folder", "data.source.folder={}/images"], "images/deep/one.png"),
    (["+data.source.list={{of:[{}/notes.txt]}}"], "notes.txt"),
])  # fmt: skip
def test_a_local_file_that_changed_makes_another_run_wherever_a_config_names_it(
    overrides: list[str], file: str, tmp_path: Path
) -> None:
    for name in ("weights.bin", "checkpoint/model.safetensors", "notes.txt", "more/b.txt", "images/deep/one.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    cfg = composed("model=gpt2", f"results_dir={tmp_path}", *(one.format(tmp_path, tmp_path) for one in overrides))
    before = store_directory(cfg), run_directories(cfg, [1])
    assert before == (store_directory(cfg), run_directories(cfg, [1]))
    (tmp_path / file).write_text("another")
    assert store_directory(cfg) != before[0]
    assert run_directories(cfg, [1]) != before[1]


def test_a_folder_that_bears_the_name_of_a_split_is_no_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = composed("model=gpt2", "data=fineweb", "+data.source.words=train")
    before = store_directory(cfg)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "of_somebody").touch()
    assert store_directory(cfg) == before


def test_a_run_of_version_0_1_is_made_again_where_a_file_that_it_read_has_changed_since(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    os.utime(tmp_path / "notes.txt", (1, 1))
    cfg = composed(
        "model=gpt2", f"results_dir={tmp_path}", "data=text_files", f"data.source.files={tmp_path}/notes.txt"
    )
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    former = run_directories(cfg, [1])[0].with_name(former_run_digests(config, [1])[0])
    former.mkdir(parents=True)
    (former / "config.yaml").touch()
    assert run_directories(cfg, [1]) == [former]
    os.utime(tmp_path / "notes.txt")
    time.sleep(0.01)
    (tmp_path / "notes.txt").write_text("b")
    assert run_directories(cfg, [1]) != [former]


def test_of_many_files_a_digest_stands_for_all(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number}.png").touch()
    cfg = composed("model=gpt2", "data=image_folder", f"data.source.folder={tmp_path}")
    before = run_settings(cfg)["files"]
    assert before == [[[tmp_path.name, 101, ANY]]]
    (tmp_path / "7.png").write_text("a")
    assert run_settings(cfg)["files"] != before
