"""`python -m sae_outliers.diagnose`: what it is told, and that a model's layers are diagnosed as their tokens are."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sae_outliers.diagnose as command
from sae_outliers import Centering, TopK, diagnose
from sae_outliers.diagnosis import model as of_model
from sae_outliers.diagnosis.model import layer_tokens
from sae_outliers.diagnosis.target import overrides_of
from sae_outliers.runs.activations import stream_of
from sae_outliers.sae.io import save_sae
from sae_outliers.stats.transforms import Affine
from sae_outliers.utils.boundary import one_sentence
from tests.conftest import Run, composed
from tests.report_page import ReadPage
from tests.test_diagnose import planted

SMALL = ("n_features=256", "k=8", "device=cpu")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        command.main([*arguments, *SMALL])
    assert end.value.code == 0
    return capsys.readouterr().out


# --- what is named ----------------------------------------------------------------------------------------


def test_what_is_named_becomes_what_run_would_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "layer_1.npy", "layer_2.npy", "few/x.npy", "few/y.npy", "hf/config.json", "acts/x.npy"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    assert overrides_of(["gpt2"]) == ["model=gpt2"]
    assert overrides_of(["offline/minilm"]) == ["model=offline/minilm"]
    assert overrides_of(["openai-community/gpt2"]) == ["model=hf", 'name="openai-community/gpt2"']
    assert overrides_of(["timm:convnext_atto.d2_in1k"]) == ["model=timm", 'name="convnext_atto.d2_in1k"']
    assert overrides_of(["hf"]) == ["model=hf", 'name="hf"']
    assert overrides_of(["acts"]) == ["model=dump", 'path="acts"']
    assert overrides_of(["a.npy"]) == ["model=dump", 'path="a.npy"']
    dump = ["model=dump", 'path="layer_{layer}.npy"']
    assert overrides_of(["layer_{layer}.npy"]) == [*dump, "model.first_layer=1"]
    assert overrides_of(["layer_1.npy", "layer_2.npy"]) == [*dump, "model.first_layer=1"]
    assert overrides_of(["few/x.npy", "few/y.npy"]) == ["model=dump", 'path="few"']


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name what to diagnose: a hub id or a folder"),
        (["./nothing"], "./nothing does not exist"),
        (["nothing.npy"], "nothing.npy does not exist"),
        (["few/x.npy", "gpt2"], "gpt2 does not exist: one model at a time"),
        (["few/x.npy"] * 2 + ["layer_1.npy"], "not all that there are in one folder, nor one for each layer"),
        (["a.npy", "k=0"], "k=0 is not a whole number of at least 1"),
        (["a.npy", "tokens=2e4"], "tokens=2e4 is not a whole number"),
        (["a.npy", "k=3", "k=4"], "k= is given twice"),
        (["a.npy", "layr=3"], "layr"),
        (["a.npy", "sae=nowhere"], "sae=nowhere does not exist: give the folder"),
        (["a.npy", "layer=4"], "layer=4 does not exist: this model has layers 0 to 0"),
        (["layer_{layer}.npy", "sae=few"], "few is of no format that is known"),
        (["a.npy", "preprocessing=none"], "preprocessing=none does not exist: use one of postln, raw"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "layer_1.npy", "layer_2.npy", "few/x.npy"):
        Path(name).parent.mkdir(exist_ok=True)
        np.save(name, planted(1.0, 50).numpy())
    with pytest.raises(SystemExit) as end, one_sentence():
        command.main([*arguments, "device=cpu"])
    assert end.value.code == 1
    (said,) = caplog.messages
    assert sentence in said


# --- activations ------------------------------------------------------------------------------------------


def test_dumps_of_several_layers_are_diagnosed_each_as_its_tokens_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    layers = {1: planted(0.1, 3000), 2: planted(4.0, 3000)}
    for number, x in layers.items():
        np.save(f"layer_{number}.npy", x.numpy())
    out = run(capsys, "layer_1.npy", "layer_2.npy", "preprocessing=raw", "to=kept")
    table = pd.read_csv("kept/layers.csv").set_index("layer")
    for number, x in layers.items():
        expected = diagnose(x, n_features=256, k=8)
        assert table.loc[number, "γ"] == pytest.approx(expected.severity.gamma, rel=1e-6)
        for centering, condition in expected.conditions.items():
            assert table.loc[number, centering.replace("_", " ")] == pytest.approx(condition.dead_pct_topk, abs=0.5)
        centering = Centering.load(f"kept/layer_{number}.safetensors")
        assert torch.allclose(centering(x), expected.recommended.centering(x), atol=1e-4)
    assert "layer 2: centre. " in out
    assert "1 fine, 1 centre (256 features, k = 8, 3000 tokens, raw" in out


def test_one_layer_is_shown_in_full_with_an_sae_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("acts.npy", planted(4.0, 3000).numpy())
    described = {"preprocessing": "raw"}
    save_sae(Path("trained/sae.safetensors"), TopK(64, 128, k=4), Affine(torch.zeros(64)), described)
    with pytest.raises(SystemExit):
        command.main(["acts.npy", "sae=trained", "device=cpu"])
    out = capsys.readouterr().out
    assert "128 features, k = 4" in out
    assert "our TopK in trained/sae.safetensors: RETRAIN CENTRED." in out
    assert "(raw)" in out  # as the SAE's file says, where without an SAE it would be post-LN


def test_fewer_tokens_than_asked_for_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("acts.npy", planted(4.0, 300).numpy())
    out = run(capsys, "acts.npy")
    assert "on 300 tokens" in out


def test_a_layer_that_is_not_finite_or_constant_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ones.npy", np.ones((300, 8), dtype=np.float32))
    with pytest.raises(SystemExit), one_sentence():
        command.main(["ones.npy", "preprocessing=raw", *SMALL])
    assert "layer 0: γ is not defined: none of the dimensions varies over 300 tokens" in caplog.messages[0]


@pytest.mark.parametrize(
    ("told", "places"),
    [
        ([], ["diagnosis.html"]),
        (["to=kept"], ["kept/diagnosis.html"]),
        (["to=kept", "page=mine/a.html"], ["mine/a.html"]),
        (["page=none"], []),
    ],
)
def test_the_page_lies_where_it_was_wanted_and_that_is_said(
    told: list[str],
    places: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("acts.npy", planted(4.0, 300).numpy())
    out = run(capsys, "acts.npy", "seed=3", *told)
    assert [str(path) for path in Path().glob("**/*.html")] == places
    assert [f"figures: {place}" in out for place in places] == [True] * len(places)
    for place in places:
        page = ReadPage(Path(place))
        command_again = " ".join(["python -m sae_outliers.diagnose acts.npy seed=3", *told, *SMALL])
        assert command_again in [text for tag, text in page.elements.texts if tag == "code"]
        assert "Measured on 300 tokens of " in page.text
        assert (
            "acts, layer 0 (data: stored), post-LN activations; SAE at initialisation: 256 features, k = 8, seed 3."
            in (page.text)
        )


def test_a_page_that_cannot_be_written_comes_after_the_figures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("acts.npy", planted(4.0, 300).numpy())
    with pytest.raises(SystemExit) as end, one_sentence():
        command.main(["acts.npy", "page=acts.npy/page.html", *SMALL])
    assert end.value.code == 1
    assert "on 300 tokens" in capsys.readouterr().out
    assert "a file stands where a folder should be" in caplog.messages[0]


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_a_models_layers_are_those_that_run_measures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sae_outliers.results.record import read_records
    from sae_outliers.runs.streaming import measure_in_stream

    tokens = 1500
    run(capsys, "offline/minilm", "layer=[2,5]", f"tokens={tokens}", f"to={tmp_path}")
    cfg = composed(
        "model=offline/minilm", "layer=[2,5]", "train=none", "tracker=none", "store=false", f"n_eval={tokens}",
        "sae.n_features=256", "sae.k=8", f"results_dir={tmp_path / 'results'}",
    )  # fmt: skip
    measure_in_stream([cfg], [2, 5])
    records = read_records(tmp_path / "results").set_index("layer")
    table = pd.read_csv(tmp_path / "layers.csv").set_index("layer")
    assert list(table.index) == [2, 5]
    for layer in table.index:
        assert table.loc[layer, "γ"] == pytest.approx(records.loc[layer, "gamma"], rel=1e-5)
        assert table.loc[layer, "γ raw"] == pytest.approx(records.loc[layer, "gamma_raw"], rel=1e-5)
        assert table.loc[layer, "eff. rank"] == pytest.approx(records.loc[layer, "effective_rank"], rel=1e-4)
        assert table.loc[layer, "off"] == pytest.approx(records.loc[layer, "dead_pct_init_topk"], abs=0.5)


def counted(function: Any, calls: list[int]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return call


@pytest.mark.weights
def test_layers_that_do_not_fit_come_from_a_pass_of_their_own_and_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = composed("model=offline/sapiens", "train=none", "n_eval=500", "device=cpu")
    passes: list[int] = []
    monkeypatch.setattr(of_model, "_one_pass", counted(of_model._one_pass, passes))
    stream = stream_of(cfg)
    backbone = stream.load_backbone()
    together = dict(layer_tokens(cfg, stream, backbone, [1, 2, 3]))
    monkeypatch.setattr(of_model, "free_memory", lambda: 0)
    apart = dict(layer_tokens(cfg, stream, backbone, [1, 2, 3]))
    assert len(passes) == 1 + 3
    assert all(torch.equal(together[layer], apart[layer]) for layer in (1, 2, 3))


@pytest.mark.weights
def test_an_interrupted_command_shows_the_layers_that_were_finished(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sae_outliers.diagnose", "offline/minilm", "tokens=3000", "n_features=1024", "k=16"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert first.startswith("layer 1: ")
    assert process.returncode == 130
    assert "interrupted: what is finished is below" in err
    assert "γ" in out
    assert "Interrupted: these are the layers that were finished." in (tmp_path / "diagnosis.html").read_text("utf-8")


def test_help_says_what_it_takes(here: Run) -> None:
    assert "python -m sae_outliers.diagnose gpt2" in here("sae_outliers.diagnose", "--help").stdout
