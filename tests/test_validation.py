"""What no run can use is refused in a sentence, before anything is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_outliers.config import expand
from sae_outliers.runs.validation import validate
from sae_outliers.utils.device import memory_for, resolve_device
from tests.conftest import ROOT, composed


@pytest.mark.parametrize(("overrides", "message"), [
    (["n_eval=0"], "n_eval=0 must be at least 1"),
    (["train.steps=-1"], "train.steps=-1 must be at least 0"),
    (["train.batch_size=0"], "train.batch_size=0 must be at least 1"),
    (["task=train"], "task=train does not exist: use one of run, extract"),
    (["preprocessing=zscore"], "preprocessing=zscore does not exist: use one of postln, raw"),
    (["precision=int4"], "precision=int4 does not exist: use one of float32, bf16_select"),
    (["centering.name=median"], "centering=median does not exist: use one of off, on, geometric_median"),
    (["init.name=xavier"], "init=xavier does not exist: use one of random, active_subspace, datapoint"),
    (["init.b_dec=median"], "init.b_dec=median does not exist: use one of zeros, mean, geometric_median"),
    (["sae.k=9000"], "sae.k=9000 must lie between 1 and sae.n_features=8192"),
    (["sae=groupmax", "sae.k=7"], "sae.k=7 groups do not divide sae.n_features=8192"),
    (["sae=matryoshka", "sae.prefixes=[0.5]"], "must be fractions of n_features that ascend to 1"),
    (["sae=relu", "precision=bf16_select"], "precision=bf16_select is for sae=topk, not for sae=relu"),
    (["sae.bandwidth=0.1"], "sae=topk has no option bandwidth: leave sae.bandwidth out"),
    (["revival=none", "revival.alpha=1"], "revival=none has no option alpha"),
    (["revival=preact_loss"], "revival=preact_loss needs the thresholds of sae=jumprelu"),
    (["data.rescale_mean=-1"], "data.rescale_mean=-1.0 must be above 0"),
    (["store=false"], "store=false measures in the stream, where nothing is trained: add train=none"),
    (["store=false", "train=none", "init=datapoint"], "store=false does not keep the tokens, which init=datapoint"),
    (["store=false", "train=none", "init.b_dec=geometric_median"], "with init.b_dec=geometric_median reads again"),
    (["variants=['seed=1','seed=2']"], "variants must share seed, but have 1 and 2: run them apart"),
    (["variants=['','data=dna']"], "variants must share data.name, but have dna and numbers: run them apart"),
    (["variants=['','sae.k=0']"], "sae.k=0 must be at least 1"),
    (["train.decay_from=-1"], "train.decay_from=-1.0 must be at least 0"),
    (["train.decay_from=1.5"], "train.decay_from=1.5 must be at most 1"),
    (["init.rank=-3"], "init.rank=-3 must be at least 1"),
    (["train.lr=nan"], "train.lr=nan must be a finite number"),
    (["data.tokens_per_item=0"], "data.tokens_per_item=0 must be at least 1"),
    (["train.batch_size=70000"], "train.n_tokens=60000 does not fill one batch of train.batch_size=70000"),
    (["revival=auxk", "revival.alpha=nan"], "revival.alpha=nan must be a finite number"),
    (["sae=jumprelu", "sae.bandwidth=0"], "sae.bandwidth=0.0 must be above 0"),
    (["revival=auxk", "train.dead_window=512000"], "is not reached in 512000 training tokens"),
    (["revival=resample", "revival.every=501"], "revival.every=501 is not reached in train.steps=500"),
    (["revival=resample", "revival.until=100"], "up to revival.until=100, so nothing would be resampled"),
    (["layer=1", "variants=['layer=2']"], "variants must share layer, but have 1 and 2"),
    (["variants=['check=true','check=true']"], "variants must share check, but have False and True"),
    (["variants=['','task=extract']"], "variants must share task, but have extract and run"),
    (["variants=['++results_dir=/tmp']"], "variants must share results_dir, but have /tmp and results"),
    (["variants=['path=/tmp']"], "variants must share path, but have /tmp and None"),
    (["model.name=a/b"], "model.name=a/b names a folder"),
    (["model.name=.."], "model.name=.. names a folder"),
    (["model.name=''"], "model.name='' must be a word"),
    (["model.name='a\tb'"], "must be a word of at most 200 printable characters"),
])  # fmt: skip
def test_a_value_that_no_run_can_use_is_named(overrides: list[str], message: str) -> None:
    overrides = ["model=synthetic/sparse", "train=short", *overrides]
    cfg = composed(*overrides)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        validate(cfg, expand(cfg, lambda variant: composed(*overrides, *variant)))


def test_what_can_run_side_by_side_passes(tmp_path: Path) -> None:
    overrides = [
        "model=synthetic/sparse",
        f"results_dir={tmp_path}",
        'variants=["","sae=jumprelu revival=preact_loss"]',
    ]
    cfg = composed(*overrides)
    validate(cfg, expand(cfg, lambda variant: composed(*overrides, *variant)))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU here: use device=cpu"):
        resolve_device("cuda:9")


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_a_device_that_nothing_here_can_run_on_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device={name} is not supported: use auto, cpu, cuda"):
        resolve_device(name)


def test_a_gpu_beyond_those_that_there_are_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(ValueError, match=r"device=cuda:2, but torch sees 2 GPU\(s\) here: use a lower number"):
        resolve_device("cuda:2")


def test_no_product_is_taken_in_tf32_where_the_environment_asks_for_it() -> None:
    code = (
        "import torch; from sae_outliers.utils.device import resolve_device; before = "
        "torch.get_float32_matmul_precision(); resolve_device('cpu'); print(before, "
        "torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)"
    )
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout.split() == ["high", "highest", "False"], done.stderr


def test_exhausted_memory_is_one_sentence_with_its_remedy_and_other_errors_pass() -> None:
    sentence = r"^out of memory: there is too little for a pass, which asked for 36028797018963968 bytes more: lower x$"
    with pytest.raises(ValueError, match=sentence), memory_for("a pass", "lower x"):
        torch.empty(1 << 53)
    on_a_gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 22.03 GiB."
    )
    with (
        pytest.raises(ValueError, match=r"a pass, which asked for 20\.00 GiB more: lower x$"),
        memory_for("a pass", "lower x"),
    ):
        raise on_a_gpu
    with pytest.raises(RuntimeError, match="shape"), memory_for("a pass", "lower x"):
        raise RuntimeError("another shape")
