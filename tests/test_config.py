"""Every yaml composes, names things that exist, and a misspelt key is refused."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from hydra.utils import get_method

from sae_outliers.config import key_of
from sae_outliers.runs.layer_spec import resolve_layers
from tests.conftest import CONF, ROOT, composed

GROUPS = ("model", "data", "sae", "centering", "train", "tracker", "experiment")


def options(group: str) -> list[str]:
    """The project's options of a group: a file that git does not know is somebody's own."""
    listed = subprocess.run(["git", "ls-files", "conf"], cwd=ROOT, capture_output=True, text=True)
    known = [ROOT / path for path in listed.stdout.splitlines()] or list(CONF.rglob("*.yaml"))  # an unpacked archive
    paths = sorted(path for path in known if path.suffix == ".yaml" and path.is_relative_to(CONF / group))
    return [path.relative_to(CONF / group).with_suffix("").as_posix() for path in paths]


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_" and value)
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_composes_names_importable_targets_and_opens_with_its_command(group: str, option: str) -> None:
    from omegaconf import OmegaConf

    config = composed(f"{group}={option}")
    for target in targets(OmegaConf.to_container(config)):
        if "spliceai" not in target:  # needs h5py, an optional package
            get_method(target) if target.rpartition(".")[2][0].islower() else __import__(target.rpartition(".")[0])
    head = (CONF / group / f"{option}.yaml").read_text().split("\n")[:2]
    assert any(line.startswith("# python -m sae_outliers.run ") and option in line for line in head)


def test_the_offline_models_cover_four_domains_and_92_layers() -> None:
    models = [composed(f"model={option}").model for option in options("model") if option.startswith("offline/")]
    assert {model.domain for model in models} == {"language", "protein", "genomic", "vision"}
    assert sum(model.last_layer - model.first_layer + 1 for model in models) == 92


def test_each_model_brings_the_data_of_its_domain_and_the_command_line_may_name_others() -> None:
    assert composed("model=offline/vit_s14").data.name == "images"
    assert composed("model=offline/antiberty", "data=protein").data.name == "protein"


@pytest.mark.parametrize("override", ["train.stepz=3", "sae.K=2", "model.layers=3"])
def test_a_misspelt_key_is_an_error(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)


def test_a_model_that_is_named_on_the_command_line_gets_a_key_that_fits_a_path(tmp_path: Path) -> None:
    assert composed("model=hf", "name=openai-community/gpt2").model.name == "openai-community--gpt2"
    (tmp_path / "mine").mkdir()
    assert composed("model=hf", f"name={tmp_path}/mine/").model.name == "mine"
    (tmp_path / "acts.npy").touch()
    assert composed("model=dump", f"path={tmp_path}/acts.npy").model.name == f"{tmp_path.name}--acts"
    with pytest.raises(ValueError, match="this model needs to be told which: add name="):
        key_of(None)


def test_what_layer_may_say() -> None:
    assert resolve_layers("all", range(1, 5)) == [1, 2, 3, 4]
    assert resolve_layers("middle", range(1, 31)) == [16]
    assert resolve_layers(3, range(1, 5)) == [3]
    assert resolve_layers([4, 1], range(1, 5)) == [4, 1]
    assert resolve_layers(0, range(1)) == [0]
    assert resolve_layers("middle", [6, 11, 23]) == [11]


@pytest.mark.parametrize(("layer", "message"), [(5, "layer=5 does not exist: this model has layers 1 to 4"),
                                                ("last", "layer=last is not a layer"), (2.5, "layer=2.5 is not"),
                                                (True, "layer=True is not a layer")])  # fmt: skip
def test_what_it_may_not_say(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layers(layer, range(1, 5))


@pytest.mark.parametrize(("folder", "key"), [
    ("Llama-3.1-8B", "Llama-3.1-8B"),
    ("Llama-3.2-1B", "Llama-3.2-1B"),
    ("runs/a/model", "a--model"),
    ("runs/b/checkpoint-500", "b--checkpoint-500"),
    ("b/model/checkpoint-500", "b--model--checkpoint-500"),
    ("models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567",
     "models--org--name--snapshots--0123456789abcdef0123456789abcdef01234567"),
])  # fmt: skip
def test_two_folders_have_two_keys(folder: str, key: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert key_of(str(tmp_path / folder)) == key_of(f"{tmp_path / folder}/") == key


@pytest.mark.parametrize(("file", "key"), [
    ("a/acts.npy", "a--acts"),
    ("b/acts.npy", "b--acts"),
    ("a/blocks.5.npy", "blocks.5"),
    ("gpt2/layer_{layer}.npy", "gpt2--layer"),
])  # fmt: skip
def test_two_dumps_have_two_keys(file: str, key: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert key_of(str(tmp_path / file)) == key
