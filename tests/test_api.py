"""The public API: what `from sae_outliers import ...` offers, and what it costs."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sae_outliers

SOURCE = Path(sae_outliers.__file__).read_text()
WITHOUT_ARRAYS = {"TrainConfig", "read_records", "load_sae"}  # settings, a DataFrame, an SAE and its centering


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_loads_nothing_and_all_names_load_without_the_models() -> None:
    """`sae_outliers.models` prepares torchvision, which no notebook that trains an SAE asks for."""
    heavy = "[name for name in ('torch', 'numpy', 'hydra', 'sae_outliers.models') if name in sys.modules]"
    printed = in_a_new_process(
        f"import sys, sae_outliers; print({heavy}); from sae_outliers import *; print({heavy}); print(TopK.__name__)"
    )
    assert printed.splitlines() == ["[]", "['torch', 'numpy', 'hydra']", "TopK"]


def test_type_checkers_see_the_names_that_are_there() -> None:
    (block,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    imports = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert imports == {name: f"sae_outliers.{module}" for name, module in sae_outliers._DEFINED_IN.items()}


def test_every_name_is_listed_and_an_unknown_one_is_an_attribute_error() -> None:
    assert set(sae_outliers.__all__) <= set(dir(sae_outliers))
    with pytest.raises(AttributeError, match="module 'sae_outliers' has no attribute 'TopKK'"):
        sae_outliers.TopKK  # noqa: B018


@pytest.mark.parametrize("name", sae_outliers.__all__)
def test_every_name_has_a_docstring_that_shows_shapes(name: str) -> None:
    value = getattr(sae_outliers, name)
    if name == "CENTERINGS":
        assert {"off", "on", "whiten"} <= set(value)
        return
    assert value.__doc__
    assert name in WITHOUT_ARRAYS or any("[" in text and "]" in text for text in docstrings(value))


def docstrings(value: object) -> list[str]:
    """Of a function; of a class its own, its bases' and its methods'."""
    if not inspect.isclass(value):
        return [inspect.getdoc(value) or ""]
    ours = [base for base in value.__mro__ if base.__module__.startswith("sae_outliers")]
    return [
        text for base in ours for text in (base.__doc__, *(method.__doc__ for method in vars(base).values())) if text
    ]


def test_an_outlier_dimension_kills_as_many_features_as_the_closed_form_says_and_centering_none() -> None:
    from sae_outliers import CENTERINGS, TopK, dead_by_topk_small_gamma, evaluate, moments, postln

    x = torch.randn(4000, 256, generator=torch.Generator().manual_seed(1))  # of seed 0, SAEs make their directions
    x[:, 100] += 40
    x = postln(x)
    m = moments(x.split(1000), covariance=True)
    sae = TopK(d_model=256, n_features=1024, k=32)
    dead = {
        name: evaluate(sae, CENTERINGS[name](m), x.split(1000), m.variance.sum().item()).fates.dead_pct_topk
        for name in ("off", "on")
    }
    assert dead["on"] == 0
    predicted = 100 * dead_by_topk_small_gamma(m.gamma, n_eval=4000, n_features=1024, k=32)
    assert dead["off"] == pytest.approx(predicted, abs=10)
