"""The main command on a real model, as a user types it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae_outliers.activations.store import LayerFiles, LayerTokens
from sae_outliers.preprocessing import postln
from sae_outliers.sae.folding import fold, load_sae
from tests.conftest import Run

pytestmark = pytest.mark.weights
SMALL = ("model=offline/minilm", "n_eval=2000", "sae.n_features=1024", "sae.k=16", "tracker=none")
TRAINED = (
    "train.steps=40", "train.n_tokens=4000", "train.batch_size=256", "train.eval_every=20", "train.dead_window=5000",
)  # fmt: skip


def records(tmp_path: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/*/*/record.json"))]


def stored_tokens(tmp_path: Path, layer: int, n_eval: int = 2000) -> torch.Tensor:
    (store,) = (tmp_path / "activations").iterdir()
    return torch.cat(list(LayerTokens(LayerFiles(store, layer), n_eval, 0, False).eval_chunks()))


def test_all_layers_at_initialisation_agree_with_a_plain_computation(command: Run, tmp_path: Path) -> None:
    done = command("sae_outliers.run", *SMALL, "layer=all", "train=none")
    assert done.returncode == 0, done.stderr
    found = {record["layer"]: record for record in records(tmp_path)}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    record = found[4]
    raw = stored_tokens(tmp_path, 4).double().numpy()
    x = postln(torch.from_numpy(raw).float()).double().numpy()
    assert record["gamma"] == pytest.approx(np.linalg.norm(x.mean(0)) / np.linalg.norm(x.std(0)), rel=1e-6)
    assert record["gamma_raw"] == pytest.approx(np.linalg.norm(raw.mean(0)) / np.linalg.norm(raw.std(0)), rel=1e-6)
    assert record["gamma_with_special"] != record["gamma"]
    directions = torch.randn(1024, 384, generator=torch.Generator().manual_seed(0))
    pre = x @ (directions / directions.norm(dim=1, keepdim=True)).double().numpy().T
    kth = np.sort(pre, axis=1)[:, -16][:, None]
    dead = ~((pre >= kth) & (pre > 0)).any(0)
    assert record["dead_pct_init_topk"] == pytest.approx(100 * dead.mean(), abs=0.2)
    assert record["dead_pct_init_relu"] == pytest.approx(100 * (pre <= 0).all(0).mean(), abs=0.1)
    assert record["fvu"] is None
    features = pd.read_parquet(next((tmp_path / "runs/minilm/4").glob("*/features.parquet")))
    assert 100 * (features.fate_init > 0).mean() == pytest.approx(record["dead_pct_init_topk"])


@pytest.mark.parametrize("sae", ["topk", "relu"])
def test_a_trained_run_leaves_curves_and_an_sae_that_folds_and_a_second_call_skips_it(
    sae: str, command: Run, tmp_path: Path
) -> None:
    arguments = (*SMALL, *TRAINED, "layer=3", f"sae={sae}", "centering=whiten")
    done = command("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs/minilm/3").iterdir()
    (record,) = records(tmp_path)
    curves = pd.read_parquet(directory / "curves.parquet")
    assert curves.tokens.tolist() == [0, 5120, 10240]
    assert curves.fvu.iloc[-1] < curves.fvu.iloc[0]
    assert record["fvu"] == pytest.approx(curves.fvu.iloc[-1])
    assert record["dead_pct_final_topk"] == pytest.approx(curves.dead_pct_topk.iloc[-1])
    assert record["dead_pct_final_window"] is not None
    assert record["gamma_sae_input"] < 1e-3 < record["gamma"]
    assert not (directory / "checkpoint.safetensors").exists()

    x = postln(stored_tokens(tmp_path, 3))
    folded = fold(*load_sae(directory / "sae.safetensors"))
    with torch.no_grad():
        error = (x - folded(x)).square().sum()
    assert (error / (x - x.mean(0)).square().sum()).item() == pytest.approx(record["fvu"], rel=1e-3)

    written = (directory / "record.json").stat().st_mtime_ns
    again = command("sae_outliers.run", *arguments)
    assert "finished before" in again.stdout + again.stderr
    assert (directory / "record.json").stat().st_mtime_ns == written


def test_geometric_median_starts_the_bias_near_the_mean(command: Run, tmp_path: Path) -> None:
    arguments = (*SMALL, *TRAINED, "layer=3", "centering=geometric_median", "train.steps=1")
    done = command("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    assert record["b_dec_cos"] > 0.95
    assert record["b_dec_distance"] < 0.3
    assert record["gamma_sae_input"] < 0.5 * record["gamma"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer=7"], "layer=7 does not exist: this model has layers 1 to 6"),
        (["preprocessing=zscore", "layer=1", "train=none"], "preprocessing=zscore does not exist"),
        (["device=cuda:9", "layer=1"], "torch sees no GPU here: use device=cpu"),
        (["train.stepz=1"], "train.stepz"),
        (["model=offline/gpt5"], "offline/gpt5"),
    ],
)
def test_bad_input_gets_one_clear_sentence_and_status_1(arguments: list[str], message: str, command: Run) -> None:
    if arguments[0].startswith("device") and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = command("sae_outliers.run", *SMALL, *arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
