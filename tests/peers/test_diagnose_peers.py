"""The diagnosis beside the libraries themselves: SAEs that their trainers made, their files, and recipes in them.

Planted γ, so that the truth is known: with the mean left in, features die; with the recipe, none do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sae_outliers.diagnose as command
from sae_outliers import diagnose
from sae_outliers.data.text import texts
from sae_outliers.diagnosis.model import layer_tokens
from sae_outliers.diagnosis.readers.base import read_sae
from sae_outliers.diagnosis.result import Diagnosis
from sae_outliers.models import packaged
from sae_outliers.runs.activations import stream_of
from sae_outliers.runs.layer_spec import layers_of
from tests.peers.test_peers import needs
from tests.test_diagnose import planted
from tests.test_diagnose_trained import output
from tests.test_export import distance

D, N, K, STEPS, BATCH = 64, 512, 8, 400, 256
RUNNER_STEPS = 150
SIZE = {"n_features": N, "k": K}
FEW_DEAD = 5.0


GAMMAS = [2.0, 5.0]


def layer(gamma: float) -> Tensor:
    return planted(gamma, 20_000)


def batches(x: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Yield random batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield x[torch.randint(len(x), (BATCH,), generator=generator)]


def centred(gamma: float) -> tuple[Diagnosis, Tensor]:
    """A layer and its diagnosis, whose centering lies where recipes read it."""
    x = layer(gamma)
    found = diagnose(x, **SIZE)
    assert found.verdict.kind == "centre"
    found.recommended.centering.save("centering.safetensors")
    return found, x


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def real_layer(*request: str) -> Tensor:
    """Tokens [tokens, d_model] of a layer of a packaged model, as the network has them."""
    cfg = command.composed(command.parse([*request, "preprocessing=raw"]))
    stream = stream_of(cfg)
    return next(layer_tokens(cfg, stream, stream.load_backbone(), layers_of(cfg.model, cfg.layer)))[1]


@cache
def smollm2() -> Tensor:
    """At the output of block 29, where γ is largest after a layer norm."""
    return real_layer("offline/smollm2", "layer=29", "tokens=8000")


def spliceai() -> tuple[Diagnosis, Tensor]:
    """The real layer with the largest γ that packages carry, 1.84 raw; its centering is left as by `centred`."""
    if find_spec("spliceai") is None:
        pytest.skip("SpliceAI is not installed: make bench-peers SPLICEAI=yes adds it")
    x = real_layer("offline/spliceai", "layer=12", "tokens=20000")
    found = diagnose(x, **SIZE)
    found.recommended.centering.save("centering.safetensors")
    return found, x


def report(library: str, without: float, after: float) -> None:
    print(f"\nDEAD {library}: {without:.1f} -> {after:.1f} %")


@pytest.fixture
def narrow(folder: None) -> Diagnosis:
    """Of a layer that varies in two directions, where whitening is recommended."""
    found = diagnose(flat_layer(), **SIZE)
    assert found.verdict.kind == "whiten"
    found.recommended.centering.save("centering.safetensors")
    return found


def flat_layer() -> Tensor:
    return planted(1.0, 20_000, rank=2)


def dead_pct(x: Tensor, folder: Path | str) -> float:
    found = diagnose(x, sae=folder).trained
    assert found is not None
    return found.dead_pct


# --- SAELens ----------------------------------------------------------------------------------------------


def saelens_sae(**settings: Any) -> Any:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    torch.manual_seed(0)
    # its default norm of 0.1 loses features of its own accord in so short a training, centred or not
    fixed = {"d_in": D, "d_sae": N, "k": K, "aux_loss_coefficient": 0.0, "decoder_init_norm": 1.0}
    cfg = TopKTrainingSAEConfig(**fixed | settings)
    return TopKTrainingSAE(cfg)


def saelens_names(x: Tensor, sae: Any) -> dict[str, Any]:
    from sae_lens.config import SAETrainerConfig

    cfg = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_end=1e-3,
        n_batches_for_norm_estimate=20,
    )
    return {"sae": sae, "cfg": cfg, "batches": batches(x)}


def saelens_fit(x: Tensor, sae: Any) -> Any:
    from sae_lens.training.sae_trainer import SAETrainer

    names = saelens_names(x, sae)
    return SAETrainer(cfg=names["cfg"], sae=sae, data_provider=names["batches"]).fit()


def saelens_saved(sae: Any, folder: str) -> str:
    Path(folder).mkdir()
    sae.save_inference_model(folder)
    return folder


def saelens_without_and_with(x: Tensor, d: Diagnosis, **settings: Any) -> tuple[float, float]:
    """Dead features in percent of an SAE that SAELens' trainer made, and of one by the recipe."""
    sizes = {"d_in": x.shape[1]} | settings
    without = dead_pct(x, saelens_saved(saelens_fit(x, saelens_sae(**sizes)), "without"))
    names = saelens_names(x, saelens_sae(**sizes))
    exec(d.recommended.recipe("saelens_trainer"), names)
    return without, dead_pct(x, saelens_saved(names["sae"], "with"))


@needs("saelens")
@pytest.mark.parametrize("gamma", GAMMAS)
def test_saelens_loses_features_and_with_the_recipe_it_does_not(gamma: float) -> None:
    d, x = centred(gamma)
    without, after = saelens_without_and_with(x, d)
    report(f"saelens γ {gamma}", without, after)
    assert after < FEW_DEAD < without


@needs("saelens")
@pytest.mark.weights
def test_saelens_on_a_layer_of_smollm2_loses_features_and_with_the_recipe_it_does_not() -> None:
    """At the output of block 29, after the layer norm that SAELens does to tokens."""
    x = smollm2()
    d = diagnose(x, preprocessing="layer_norm", **SIZE)
    d.recommended.centering.save("centering.safetensors")
    without, after = saelens_without_and_with(x, d, normalize_activations="layer_norm")
    report(f"saelens SmolLM2 layer 29, γ {d.severity.gamma:.2f}", without, after)
    assert after < FEW_DEAD < without


def runner_config(folder: Path, layer: int, output: str) -> Any:
    """SAELens' runner on the first blocks of a model in a folder."""
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

    size = {"d_in": 576, "normalize_activations": "layer_norm"}
    return LanguageModelSAERunnerConfig(
        sae=saelens_sae(**size).cfg,
        model_name=str(folder),
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"num_hidden_layers": layer},
        hook_name=f"model.layers.{layer - 1}",
        is_dataset_tokenized=False,
        prepend_bos=False,
        training_tokens=RUNNER_STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_batches_in_buffer=8,
        lr=1e-3,
        lr_end=1e-3,
        checkpoint_path=None,
        output_path=output,
        logger=LoggingConfig(log_to_wandb=False),
    )


@needs("saelens")
@pytest.mark.weights
def test_saelens_on_a_layer_of_spliceai_loses_features_and_with_the_recipe_it_does_not() -> None:
    d, x = spliceai()
    without, after = saelens_without_and_with(x, d)
    report(f"saelens, SpliceAI layer 12, γ {d.severity.gamma:.2f}", without, after)
    assert after < FEW_DEAD < without


@needs("saelens")
@pytest.mark.weights
def test_saelens_runner_with_the_recipe_loses_no_feature_of_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    import sae_lens
    from datasets import Dataset

    layer = 3
    x = real_layer("offline/smollm2", f"layer={layer}", "tokens=8000")
    d = diagnose(x, preprocessing="layer_norm", **SIZE)
    d.recommended.centering.save("centering.safetensors")
    folder = packaged.smollm2()
    text = Dataset.from_dict({"text": list(texts("docstrings"))})
    # for a user, the config names the dataset
    monkeypatch.setattr(
        sae_lens,
        "LanguageModelSAETrainingRunner",
        partial(sae_lens.LanguageModelSAETrainingRunner, override_dataset=text),
    )
    sae_lens.LanguageModelSAETrainingRunner(runner_config(folder, layer, "without")).run()
    exec(d.recommended.recipe("saelens"), {"cfg": runner_config(folder, layer, "with")})
    without, after = dead_pct(x, "without"), dead_pct(x, "with")
    report(f"saelens' runner, SmolLM2 layer {layer}, γ {d.severity.gamma:.2f}", without, after)
    assert after < FEW_DEAD < without


@needs("saelens")
def test_whitened_tokens_of_saelens_are_folded_into_its_sae(narrow: Diagnosis) -> None:
    x = flat_layer()
    without = dead_pct(x, saelens_saved(saelens_fit(x, saelens_sae()), "without"))
    names = saelens_names(x, saelens_sae(normalize_activations="covariance_whitening"))
    exec(narrow.recommended.recipe("saelens_trainer"), names)
    after = dead_pct(x, saelens_saved(names["sae"], "with"))
    report("saelens, whitening", without, after)
    assert after < FEW_DEAD < without


@needs("saelens")
@pytest.mark.parametrize(
    "normalisation", ["none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening"]
)
@torch.no_grad()
def test_what_saelens_trained_is_read_as_saelens_computes_it(normalisation: str) -> None:
    from sae_lens import SAE

    x = layer(2.0)
    with torch.enable_grad():
        trained = saelens_fit(x, saelens_sae(normalize_activations=normalisation))
    folder = saelens_saved(trained, "sae")
    theirs = SAE.load_from_disk(folder)
    loaded = read_sae(folder)
    features, x_hat = output(loaded, x[:500])
    assert distance(features, theirs.encode(x[:500])) < 1e-4
    if normalisation in ("none", "expected_average_only_in", "covariance_whitening"):  # else x̂ is of the normalised x
        assert distance(x_hat, theirs(x[:500])) < 1e-4


@needs("saelens")
def test_an_sae_that_saelens_trained_off_centre_is_told_to_be_retrained_or_folded() -> None:
    x = layer(5.0)
    found = diagnose(x, sae=saelens_saved(saelens_fit(x, saelens_sae()), "sae")).trained
    assert found is not None
    assert found.bias.mean_in_bias < 0.3
    assert found.bias.mean_in_features > 0.7
    assert found.advice.action in ("retrain centred", "fold a centering in and fine-tune")


# --- dictionary_learning ----------------------------------------------------------------------------------


class Buffer:
    """As dictionary_learning's ActivationBuffer: it is iterated, and has a config."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.config = x, {"ctx_len": 128, "d_submodule": x.shape[1]}

    def __iter__(self) -> Iterator[Tensor]:
        return batches(self.x)


def dl_names(x: Tensor, save_dir: str, trainer: str) -> dict[str, Any]:
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    shared = {"steps": STEPS, "activation_dim": x.shape[1], "dict_size": N, "layer": 0, "lm_name": "none", "lr": 1e-3,
              "warmup_steps": 10, "seed": 0, "device": "cpu"}  # fmt: skip
    if trainer == "topk":
        config = shared | {"trainer": TopKTrainer, "k": K, "auxk_alpha": 0.0}
    else:
        config = shared | {"trainer": StandardTrainer, "l1_penalty": 0.02, "sparsity_warmup_steps": 100}
    return {"buffer": Buffer(x), "trainer_configs": [config], "steps": STEPS, "save_dir": save_dir, "device": "cpu"}


def dl_train(x: Tensor, save_dir: str, trainer: str) -> str:
    from dictionary_learning.training import trainSAE

    names = dl_names(x, save_dir, trainer)
    trainSAE(names["buffer"], names["trainer_configs"], STEPS, save_dir=save_dir, device="cpu")
    return f"{save_dir}/trainer_0"


def dl_without_and_with(x: Tensor, d: Diagnosis, trainer: str) -> tuple[float, float]:
    """Dead features in percent of an SAE that a trainer of dictionary_learning made, and of one by the recipe."""
    without = dead_pct(x, dl_train(x, "without", trainer))
    names = dl_names(x, "with", trainer)
    exec(d.recommended.recipe("dictionary_learning"), names)
    return without, dead_pct(x, "with/trainer_0")


@needs("dictionary_learning")
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("trainer", ["standard", "topk"])
def test_dictionary_learning_with_the_recipe_loses_no_features(trainer: str, gamma: float) -> None:
    """Its TopKTrainer centres by its first batch, and loses none without either; its StandardTrainer does not."""
    d, x = centred(gamma)
    without, after = dl_without_and_with(x, d, trainer)
    report(f"dictionary_learning {trainer} γ {gamma}", without, after)
    assert after < FEW_DEAD
    assert (without > FEW_DEAD) == (trainer == "standard")


@needs("dictionary_learning")
@pytest.mark.weights
def test_dictionary_learning_loses_no_features_of_a_layer_of_smollm2_with_the_recipe_nor_without() -> None:
    """Tokens after LayerNorm, which it leaves to its user; what its StandardTrainer loses, it loses at higher γ."""
    x = smollm2()
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    d = diagnose(x, **SIZE)
    d.recommended.centering.save("centering.safetensors")
    without, after = dl_without_and_with(x, d, "standard")
    report(f"dictionary_learning, SmolLM2 layer 29, γ {d.severity.gamma:.2f}", without, after)
    assert max(without, after) < FEW_DEAD


@needs("dictionary_learning")
def test_whitened_tokens_of_dictionary_learning_are_folded_into_its_sae(narrow: Diagnosis) -> None:
    x = flat_layer()
    without, after = dl_without_and_with(x, narrow, "topk")
    report("dictionary_learning topk, whitening", without, after)
    assert after < FEW_DEAD < without


@needs("dictionary_learning")
@pytest.mark.parametrize("trainer", ["topk", "standard"])
@torch.no_grad()
def test_what_dictionary_learning_trained_is_read_as_it_computes_it(trainer: str) -> None:
    from dictionary_learning.utils import load_dictionary

    x = layer(2.0)
    with torch.enable_grad():
        folder = dl_train(x, "sae", trainer)
    theirs, _ = load_dictionary(folder, device="cpu")
    features, x_hat = output(read_sae(folder), x[:500])
    assert distance(features, theirs.encode(x[:500])) < 1e-4
    assert distance(x_hat, theirs(x[:500])) < 1e-4


# --- sparsify ---------------------------------------------------------------------------------------------


@dataclass
class Config:
    hidden_size: int
    num_hidden_layers: int = 1


class Lookup(nn.Module):
    """As much of a transformers model as sparsify's Trainer asks for; token i becomes row i of x."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.h = nn.Identity()
        self.register_buffer("x", x)
        self.config = Config(x.shape[1])

    @property
    def base_model(self) -> "Lookup":
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 4, dtype=torch.int64)}

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        result: Tensor = self.h(self.x[input_ids])
        return result


def sparsify_names(x: Tensor) -> dict[str, Any]:
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(x), (STEPS * 8, BATCH // 8), generator=generator)
    dataset = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    cfg = TrainConfig(
        SparseCoderConfig(num_latents=N, k=K), batch_size=8, hookpoints=["h"], optimizer="adam", lr=1e-3,
        lr_warmup_steps=10, log_to_wandb=False, run_name="run", save_dir=".",
    )  # fmt: skip
    return {"cfg": cfg, "dataset": dataset, "model": Lookup(x)}


def sparsify_train(x: Tensor) -> str:
    from sparsify import Trainer

    names = sparsify_names(x)
    trainer = Trainer(names["cfg"], names["dataset"], names["model"])
    trainer.fit()
    trainer.saes["h"].save_to_disk("without")
    return "without"


@needs("sparsify")
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sparsify_centres_by_its_first_batch_and_takes_the_recipe_too(gamma: float) -> None:
    d, x = centred(gamma)
    without = dead_pct(x, sparsify_train(x))
    names = sparsify_names(x)
    exec(d.recommended.recipe("sparsify"), names)
    sae = names["trainer"].saes["h"]
    sae.save_to_disk("with")
    after = dead_pct(x, "with")
    report(f"sparsify γ {gamma}", without, after)
    assert max(without, after) < FEW_DEAD
    found = diagnose(x, sae="with").trained
    assert found is not None
    assert found.bias.mean_in_bias == pytest.approx(1, abs=0.05)


@needs("sparsify")
@torch.no_grad()
def test_whitened_tokens_of_sparsify_are_folded_into_its_sae(narrow: Diagnosis) -> None:
    from sparsify import SparseCoder

    x = flat_layer()
    with torch.enable_grad():
        without = dead_pct(x, sparsify_train(x))
        names = sparsify_names(x)
        exec(narrow.recommended.recipe("sparsify"), names)
    after = dead_pct(x, "centred/h")
    report("sparsify, whitening", without, after)
    assert after < FEW_DEAD < without
    theirs = SparseCoder.load_from_disk("centred/h")(x[:500])
    assert distance(output(read_sae("centred/h"), x[:500])[1], theirs.sae_out) < 1e-3


# --- saev -------------------------------------------------------------------------------------------------


@needs("saev")
@torch.no_grad()
def test_what_saev_wrote_is_read_as_it_computes_it() -> None:
    """By the version on PyPI; of its trainer no more than the loop, for the rest wants images and W&B."""
    from saev import config, nn

    x = layer(2.0)
    torch.manual_seed(0)
    sae = nn.SparseAutoencoder(config.SparseAutoencoder(d_vit=D, exp_factor=N // D, n_reinit_samples=1000))
    sae.init_b_dec(x)
    sae.normalize_w_dec()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _, batch in zip(range(STEPS), batches(x), strict=False):
            optimizer.zero_grad()
            sae(batch)[2].loss.backward()
            sae.remove_parallel_grads()
            optimizer.step()
            sae.normalize_w_dec()
    nn.dump("sae/sae.pt", sae)
    theirs = nn.load("sae/sae.pt")
    x_hat_by_saev, features_by_saev, _ = theirs(x[:500])
    features, x_hat = output(read_sae("sae"), x[:500])
    assert distance(features, features_by_saev) < 1e-4
    assert distance(x_hat, x_hat_by_saev) < 1e-4
    found = diagnose(x, sae="sae").trained
    assert found is not None
    assert found.bias.mean_in_bias == pytest.approx(1, abs=0.05)  # it starts b_dec at the mean
