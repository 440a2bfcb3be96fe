"""The README's own-model examples do what it says."""

import io
import re
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from hydra.utils import get_method

from sae_outliers.config import ModelConfig

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def printed_by(example: str) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(example, {})
    return printed.getvalue()


def test_the_first_python_example_finds_the_outlier_dimension_that_it_plants() -> None:
    printed = printed_by(blocks("python")[0])
    assert re.match(r"γ = 1\.\d\d; about \d\d % dead at initialisation; OutlierDim\(index=100, ", printed)


def test_the_second_python_example_trains_an_sae() -> None:
    torch.manual_seed(0)
    found = re.fullmatch(
        r"unexplained: (\S+); not fired in the last 100,000 tokens: (\S+) %\n", printed_by(blocks("python")[1])
    )
    assert found
    assert 0 < float(found[1]) < 0.6
    assert 0 <= float(found[2]) < 50


def test_the_model_config_example_fits_the_schema_and_the_loader() -> None:
    (example,) = blocks("yaml")
    model = yaml.safe_load(example)["model"]
    assert model.keys() <= {field.name for field in fields(ModelConfig)}
    loader = get_method(model["loader"].pop("_target_"))
    assert model["loader"].keys() <= loader.__annotations__.keys()


def test_every_make_target_and_path_that_it_names_exists() -> None:
    root = Path(__file__).parent.parent
    makefile = (root / "Makefile").read_text()
    targets = re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE)
    assert len(targets) > 5
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    named = re.findall(r"`((?:conf|sae_outliers|launch|tests)/[\w/.-]+)`", README)
    own = "conf/model/mine.yaml"
    assert [path for path in named if path != own and not (root / path).exists()] == []
