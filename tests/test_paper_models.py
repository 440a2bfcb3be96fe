"""conf/model/ holds the paper's 19 models: 454 model-layers, each config complete, whatever else lies beside them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from sae_outliers.analysis.inputs import layers_listed_in
from sae_outliers.models.listing import rows
from sae_outliers.paths import PAPER_MODELS
from sae_outliers.sweeps.plan import plan
from tests.conftest import CONF, ROOT, composed

# arXiv 2605.31518: model, layers, width
PAPER = {
    "gpt2": (1, 11, 768),
    "pythia_70m": (1, 5, 512),
    "pythia_410m": (1, 23, 1024),
    "modernbert": (1, 21, 768),
    "modernbert_large": (1, 27, 1024),
    "glm2": (1, 32, 1280),
    "evo": (1, 31, 4096),
    "esm2_35m": (1, 11, 480),
    "esm2_650m": (1, 32, 1280),
    "esm2_3B": (1, 35, 2560),
    "esm3": (1, 47, 1536),
    "progen_base": (1, 26, 1536),
    "progen_large": (1, 31, 2560),
    "af3": (0, 0, 384),
    "dinov2": (1, 11, 768),
    "dinov2_large": (1, 23, 1024),
    "dinov3_small": (1, 11, 768),
    "dinov3": (1, 39, 4096),
    "stable-diffusion-3-5-large": (1, 37, 2432),
}
REMOTE_CODE = {"glm2", "evo"}


def config(key: str) -> Any:
    return composed(f"model={key}", "layer=all", "train=none", "path=/somewhere")


def test_the_project_names_these_19_and_the_folder_holds_each() -> None:
    assert set(PAPER_MODELS) == PAPER.keys()
    assert PAPER.keys() <= {path.stem for path in CONF.glob("model/*.yaml")}
    assert sum(last - first + 1 for first, last, _ in PAPER.values()) == 454
    expected = {name: range(first, last + 1) for name, (first, last, _) in PAPER.items()}
    assert layers_listed_in(Path("paper")) == layers_listed_in(CONF / "model") == expected


def test_a_glob_over_the_models_gives_these_19_and_not_those_that_need_a_name(combinations: Callable[..., Any]) -> None:
    globbed = combinations("model=glob(*)")
    assert {overrides[0] for overrides in globbed.all} == {f"model={key}" for key in PAPER}
    assert {"hf", "timm", "dump"} <= set(globbed.config_loader.get_group_options("model"))


@pytest.mark.parametrize("key", PAPER)
def test_a_model_has_the_papers_name_layers_and_width_and_says_what_it_needs(key: str) -> None:
    model = config(key).model
    assert model.name == key
    assert (model.first_layer, model.last_layer, model.d_model) == PAPER[key]
    assert model.licence
    if key != "af3":  # others computed its activations: no weights of ours
        assert model.parameters > 1e6
        assert sorted(model.gpu_batch_size)[-1] == 80
        unpinned = "unpinned" in (CONF / "model" / f"{key}.yaml").read_text()
        assert pinned(OmegaConf.to_yaml(model.loader)) != unpinned


def pinned(loader: str) -> bool:
    """Whether a whole commit hash is in a loader's arguments."""
    return re.search(r"\b[0-9a-f]{40}\b", loader) is not None


@pytest.mark.parametrize("key", PAPER)
def test_what_its_config_names_can_be_built(key: str) -> None:
    cfg = config(key)
    assert callable(get_method(cfg.model.loader._target_))
    assert callable(instantiate(cfg.data.source))


def test_only_two_models_ask_for_remote_code_and_it_is_pinned_to_a_commit() -> None:
    code = {key: config(key).model.loader.get("code") for key in PAPER}
    assert {key for key, where in code.items() if where} == REMOTE_CODE
    for key in REMOTE_CODE:
        commit = code[key].rpartition("@")[2]
        assert len(commit) == 40
        assert set(commit) <= set("0123456789abcdef")


def test_a_sweep_over_all_layers_is_454_jobs_after_19_extractions(tmp_path: Path) -> None:
    overrides = [f"results_dir={tmp_path}", "train=none", "path=/somewhere", "layer=all"]
    configs = {key: composed(f"model={key}", *overrides) for key in PAPER}
    planned = plan(((f"model={key}", *overrides), cfg, [cfg]) for key, cfg in configs.items())
    assert (len(planned.jobs), len(planned.extractions)) == (454, 19)


def test_the_table_of_models_names_each_and_how_to_install_what_is_missing() -> None:
    table = {row["model"]: row for row in rows()}
    assert set(list(table)[:19]) == PAPER.keys() == {name for name, row in table.items() if row["source"] == "paper"}
    assert set(PAPER) | {"offline/smollm2", "offline/spliceai"} <= table.keys()
    assert table["af3"]["layers"] == "0"
    assert table["esm2_3B"]["layers"] == "1-35"
    assert table["esm3"]["installed"] == "make esm" or table["esm3"]["installed"][0].isdigit()
    printed = subprocess.run(
        [sys.executable, "-m", "sae_outliers.models"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(printed.stdout.splitlines()) == 2 + len(table)
