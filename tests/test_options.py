"""Types that a config names, ours and a user's own, and what their constructors say of the options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sae_outliers.config import expand, options_of, sae_options
from sae_outliers.runs.validation import validate
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SAES, sae_type
from sae_outliers.sae.initialization import INITS
from sae_outliers.stats.transforms import CENTERINGS
from sae_outliers.tracking.base import TRACKERS
from sae_outliers.training.revival import REVIVALS, AuxK, Revival, revival_type
from sae_outliers.utils.options import constructor_types, typed_options
from sae_outliers.utils.registry import Registry
from tests.conftest import CONF, composed

REGISTRIES: dict[str, Registry[Any]] = {
    "sae": SAES,
    "revival": REVIVALS,
    "centering": CENTERINGS,
    "init": INITS,
    "tracker": TRACKERS,
}


class Tempered(TopK):
    """A user's own type, with an option of its own and the rest passed on."""

    def __init__(self, *sizes: int, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.temperature = temperature

    def features(self, pre: Tensor) -> Tensor:
        return super().features(pre) / self.temperature


class Patient(Revival):
    def __init__(self, patience: int = 3, names: Sequence[str] = ()) -> None:
        self.patience = patience


@pytest.mark.parametrize("group", REGISTRIES)
def test_the_yamls_of_a_group_are_the_registered_names(group: str) -> None:
    names = {path.stem for path in (CONF / group).glob("*.yaml")}
    assert names == set(REGISTRIES[group])
    for name in names:
        cfg = composed(f"{group}={name}")
        assert cfg[group].name == name
        assert "_target_" not in (CONF / group / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", SAES)
def test_the_options_of_an_sae_yaml_are_the_constructors(name: str) -> None:
    cfg = composed(f"sae={name}")
    sae = sae_type(cfg.sae)(4, **sae_options(cfg, sae_type(cfg.sae)))
    assert (
        sae.options().items() >= {k: v for k, v in options_of(cfg.sae, type(sae)).items() if k != "n_features"}.items()
    )


@pytest.mark.parametrize(("overrides", "message"), [
    (["sae=relu", "sae.sparsity=abc"], "sae.sparsity=abc must be a number"),
    (["sae=relu_april", "sae.decoder_norm_weighted=no way"], "sae.decoder_norm_weighted=no way must be true or false"),
    (["sae=matryoshka", "sae.prefixes=[a,1]"], "sae.prefixes=['a', 1] must be a list, each entry a number"),
    (["sae=matryoshka", "sae.prefixes=0.5"], "sae.prefixes=0.5 must be a list, each entry a number"),
    (["revival=resample", "revival.every=2.5"], "revival.every=2.5 must be a whole number"),
    (["sae.sparsity=0.1"], "sae=topk has no option sparsity: leave sae.sparsity out"),
    (["sae=relu", "sae.sparsity=nan"], "sae.sparsity=nan must be a finite number"),
    (["sae=jumprelu", "sae.bandwidth=0"], "sae.bandwidth=0.0 must be above 0"),
    (["revival=auxk", "revival.alpha=nan"], "revival.alpha=nan must be a finite number"),
    (["sae.name=top"], "sae=top does not exist: use one of batchtopk, gated"),
    (["revival.name=aux"], "revival=aux does not exist: use one of none, auxk"),
    (["tracker.name=mlflow"], "tracker=mlflow does not exist: use one of none, wandb"),
    (["sae.name=mine", "sae._target_=nowhere.Sae"], "sae type nowhere.Sae cannot be imported: "),
    (["sae.name=mine", "sae._target_=pathlib.Path"], "sae type pathlib.Path is not a subclass of SparseAutoencoder"),
    (["sae._target_=tests.test_options.Tempered"], "sae=topk is a type of ours, but sae._target_=tests.test_options."),
])  # fmt: skip
def test_a_value_that_a_constructor_cannot_use_is_named(overrides: list[str], message: str) -> None:
    cfg = composed("model=synthetic/sparse", *overrides)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below, not as a pattern
        validate(cfg, expand(cfg, lambda variant: composed(*overrides, *variant)))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_options_become_what_the_constructor_declares() -> None:
    typed = typed_options(ReLU, {"sparsity": "1e-2", "decoder_norm_weighted": "true", "k": 3}, "sae", "relu")
    assert typed == {"sparsity": 0.01, "decoder_norm_weighted": True, "k": 3}
    one = typed_options(ReLU, {"sparsity": 1}, "sae", "relu")["sparsity"]
    assert isinstance(one, float)
    assert typed_options(Matryoshka, {"prefixes": [1, 1]}, "sae", "matryoshka") == {"prefixes": [1.0, 1.0]}
    assert typed_options(AuxK, {"k_aux": "8"}, "revival", "auxk") == {"k_aux": 8}
    with pytest.raises(ValueError, match=r"revival\.k_aux=few must be a whole number or null"):
        typed_options(AuxK, {"k_aux": "few"}, "revival", "auxk")


def test_a_constructor_that_passes_options_on_takes_its_bases_options_too() -> None:
    assert constructor_types(Tempered).items() >= {"temperature": float, "k": int, "precision": str}.items()
    assert "sizes" not in constructor_types(Tempered)
    assert constructor_types(Revival) == {}


def test_types_of_ones_own_are_named_by_their_path_and_checked_like_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed("model=synthetic/sparse", "sae.name=tempered", "sae._target_=tests.test_options.Tempered")
    validate(cfg, [cfg])
    assert sae_type(cfg.sae) is Tempered
    cfg = composed("model=synthetic/sparse", "revival.name=patient", "revival._target_=tests.test_options.Patient")
    validate(cfg, [cfg])
    assert revival_type(cfg.revival) is Patient
    with pytest.raises(ValueError, match=r"sae\.temperature=hot must be a number"):
        typed_options(Tempered, {"temperature": "hot"}, "sae", "tempered")


@pytest.mark.parametrize(("target", "name"), [
    ("sae_outliers.sae.topk.TopK", "topk"), ("sae_outliers.sae.batchtopk.BatchTopK", "batchtopk"),
    ("sae_outliers.sae.matryoshka.Matryoshka", "matryoshka"), ("sae_outliers.sae.groupmax.GroupMax", "groupmax"),
    ("sae_outliers.sae.relu.ReLU", "relu"), ("sae_outliers.sae.relu.ReLU", "relu_april"),
    ("sae_outliers.sae.jumprelu.JumpReLU", "jumprelu"), ("sae_outliers.sae.gated.Gated", "gated"),
])  # fmt: skip
def test_a_config_that_names_a_type_by_its_former_path_gets_it(target: str, name: str) -> None:
    assert sae_type(composed(f"sae={name}", f"sae._target_={target}").sae) is SAES[name]


@pytest.mark.parametrize(("target", "name"), [
    ("sae_outliers.revival.Revival", "none"), ("sae_outliers.revival.AuxK", "auxk"),
    ("sae_outliers.revival.GhostGrads", "ghost_grads"), ("sae_outliers.revival.PreactLoss", "preact_loss"),
    ("sae_outliers.revival.Resample", "resample"),
])  # fmt: skip
def test_a_config_that_names_a_revival_by_its_former_path_gets_it(target: str, name: str) -> None:
    assert revival_type(composed(f"revival={name}", f"revival._target_={target}").revival) is REVIVALS[name]
