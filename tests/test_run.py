"""The main command on a real model, as a user types it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sae_outliers.activations.layer_files import StoredLayer
from sae_outliers.activations.store import LayerTokens
from sae_outliers.runs.activations import extract
from sae_outliers.sae.io import fold, load_sae
from sae_outliers.stats.transforms import postln
from tests.conftest import Run, composed

pytestmark = pytest.mark.weights
SMALL = ("model=offline/minilm", "n_eval=2000", "sae.n_features=1024", "sae.k=16", "tracker=none")
TRAINED = (
    "train.steps=40", "train.n_tokens=4000", "train.batch_size=256", "train.eval_every=20", "train.dead_window=5000",
)  # fmt: skip


@pytest.fixture(scope="module")
def layer_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The activations that most tests here read."""
    folder = tmp_path_factory.mktemp("results")
    extract(composed(*SMALL, *TRAINED, "layer=3", f"results_dir={folder}"), [3])
    return folder / "activations"


@pytest.fixture
def extracted(layer_3: Path, tmp_path: Path) -> None:
    shutil.copytree(layer_3, tmp_path / "activations")


def records(tmp_path: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/*/*/record.json"))]


def stored_tokens(tmp_path: Path, layer: int, n_eval: int = 2000) -> torch.Tensor:
    (store,) = (tmp_path / "activations").iterdir()
    return torch.cat(list(LayerTokens(StoredLayer(store, layer), n_eval, 0, False).eval_chunks()))


def test_all_layers_at_initialisation_agree_with_a_plain_computation(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", *SMALL, "layer=all", "train=none", "n_eval=1000")
    assert done.returncode == 0, done.stderr
    found = {record["layer"]: record for record in records(tmp_path)}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    record = found[4]
    raw = stored_tokens(tmp_path, 4, 1000).double().numpy()
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


@pytest.mark.usefixtures("extracted")
@pytest.mark.parametrize("sae", ["topk", "relu"])
def test_a_trained_run_leaves_curves_and_an_sae_that_folds_and_a_second_call_skips_it(
    sae: str, here: Run, tmp_path: Path
) -> None:
    arguments = (*SMALL, *TRAINED, "layer=3", f"sae={sae}", "centering=whiten")
    done = here("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs/minilm/3").iterdir()
    (record,) = records(tmp_path)
    curves = pd.read_parquet(directory / "curves.parquet")
    assert curves.tokens.tolist() == [0, 5120, 10240]
    assert curves.fvu.iloc[-1] < curves.fvu.iloc[0]
    assert record["fvu"] == curves.fvu.iloc[-1]
    for when, point in (("init", curves.iloc[0]), ("final", curves.iloc[-1])):
        assert record[f"dead_pct_{when}_topk"] == point.dead_pct_topk
        assert record[f"dead_pct_{when}_relu"] == point.dead_pct_relu
    assert record["dead_pct_final_window"] is not None
    assert record["gamma_sae_input"] < 1e-3 < record["gamma"]
    assert not (directory / "checkpoint.safetensors").exists()

    x = postln(stored_tokens(tmp_path, 3))
    folded = fold(*load_sae(directory / "sae.safetensors"))
    with torch.no_grad():
        error = (x - folded(x)).square().sum()
    assert (error / (x - x.mean(0)).square().sum()).item() == pytest.approx(record["fvu"], rel=1e-3)

    written = (directory / "record.json").stat().st_mtime_ns
    again = here("sae_outliers.run", *arguments)
    assert "finished before" in again.stdout + again.stderr
    assert (directory / "record.json").stat().st_mtime_ns == written


@pytest.mark.usefixtures("extracted")
def test_geometric_median_starts_the_bias_near_the_mean(here: Run, tmp_path: Path) -> None:
    arguments = (*SMALL, *TRAINED, "layer=3", "centering=geometric_median", "train.steps=1")
    done = here("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    assert record["b_dec_cos"] > 0.95
    assert record["b_dec_distance"] < 0.3
    assert record["gamma_sae_input"] < 0.5 * record["gamma"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer=7"], "layer=7 does not exist: this model has layers 1 to 6"),
        (["layer=1", "preprocessing=zscore"], "preprocessing=zscore does not exist: use one of postln, raw"),
        (["layer=1", "train.stepz=1"], "train.stepz"),
        (["layer=1", "model=offline/gpt5"], "offline/gpt5"),
    ],
)
def test_bad_input_gets_one_clear_sentence_and_status_1(
    arguments: list[str], message: str, here: Run, tmp_path: Path
) -> None:
    done = here("sae_outliers.run", *SMALL, *arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "activations").exists()  # it came before anything was loaded


@pytest.mark.usefixtures("extracted")
def test_variants_train_side_by_side_and_leave_the_records_of_running_them_alone(here: Run, tmp_path: Path) -> None:
    shared = (*SMALL, *TRAINED, "layer=3", "train.steps=20", "train.dead_window=2500")
    variants = ["revival=auxk", "centering=on sae_seed=1", "sae=batchtopk sae.k=8"]
    quoted = ",".join(f"'{variant}'" for variant in variants)
    done = here("sae_outliers.run", *shared, f"variants=[{quoted}]")
    assert done.returncode == 0, done.stderr
    together = {record["run_id"]: record for record in records(tmp_path)}
    weights = {path.parent.name: load_file(path) for path in tmp_path.glob("runs/*/*/*/sae.safetensors")}
    assert len(weights) == 3
    again = here("sae_outliers.run", *shared, *variants[1].split())
    assert "finished before" in again.stdout + again.stderr
    shutil.rmtree(tmp_path / "runs")
    for variant in variants:
        assert here("sae_outliers.run", *shared, *variant.split()).returncode == 0
    for record in records(tmp_path):
        same = together[record["run_id"]]
        assert same["side_by_side"] == 3
        in_a_stack = record["sae"] == "topk"  # the two round otherwise than alone
        for name in set(record) - {"seconds", "side_by_side", "peak_memory_mb", "digests"}:
            rounded = in_a_stack and isinstance(record[name], float)
            assert record[name] == (pytest.approx(same[name], rel=1e-5, abs=1e-7) if rounded else same[name]), name
        for file in ("features.parquet", "curves.parquet"):  # the SAE's file says how long its run took
            assert in_a_stack or record["digests"][file] == same["digests"][file]
        for name, tensor in load_file(tmp_path / "runs/minilm/3" / record["run_id"] / "sae.safetensors").items():
            expected = weights[record["run_id"]][name]
            difference = (tensor - expected).norm()
            assert difference <= (1e-5 * expected.norm() if in_a_stack else 0), name


@pytest.mark.usefixtures("extracted")
def test_a_planted_gamma_is_the_gamma_that_the_sae_sees_and_changes_nothing_else_about_the_tokens(
    here: Run, tmp_path: Path
) -> None:
    arguments = (*SMALL, "layer=3", "train=none", "variants=['','data.rescale_mean=15']")
    done = here("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stderr
    natural, planted = sorted(records(tmp_path), key=lambda record: record["gamma"])
    assert natural["planted_gamma"] is None
    assert planted["planted_gamma"] == 15
    assert planted["gamma"] == pytest.approx(15)
    assert planted["gamma_sae_input"] == pytest.approx(15, rel=1e-4)
    for name in ("gamma_raw", "gamma_without_special", "effective_rank"):
        assert planted[name] == pytest.approx(natural[name])
    assert planted["dead_pct_init_topk"] > 90 > natural["dead_pct_init_topk"]
    x = postln(stored_tokens(tmp_path, 3)).double()
    mean = x.mean(0)
    assert natural["offset_max"] == pytest.approx(mean.abs().max().item(), rel=1e-5)
    assert planted["offset_max"] == pytest.approx(15 / natural["gamma"] * natural["offset_max"], rel=1e-5)
    x = (x + (15 / natural["gamma"] - 1) * mean).float()
    W = torch.nn.functional.normalize(torch.randn(1024, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    assert planted["dead_pct_init_relu"] == pytest.approx(100 * ((x @ W.T) <= 0).all(0).double().mean().item(), abs=0.1)


@pytest.mark.usefixtures("extracted")
def test_an_sae_trained_at_a_planted_gamma_folds_back_to_the_tokens_as_they_are(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", *SMALL, *TRAINED, "layer=3", "data.rescale_mean=15", "centering=on")
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    (directory,) = (tmp_path / "runs/minilm/3").iterdir()
    x = postln(stored_tokens(tmp_path, 3))
    with torch.no_grad():
        error = (x - fold(*load_sae(directory / "sae.safetensors"))(x)).square().sum()
    assert (error / (x - x.mean(0)).square().sum()).item() == pytest.approx(record["fvu"], rel=1e-3)


@pytest.mark.usefixtures("extracted")
def test_initialisations_and_b_dec_are_where_the_config_says(here: Run, tmp_path: Path) -> None:
    variants = "variants=['','init=active_subspace init.rank=20','init=datapoint init.blend=1','init.b_dec=mean']"
    done = here("sae_outliers.run", *SMALL, "layer=3", "train=none", variants)
    assert done.returncode == 0, done.stderr
    found = {(record["init"], record["init_b_dec"]): record for record in records(tmp_path)}
    random, mean = found["random", "zeros"], found["random", "mean"]
    assert mean["gamma_sae_input"] < 1e-3 < random["gamma_sae_input"]
    assert mean["offset_max"] < 1e-3 < random["offset_max"]
    assert found["datapoint", "zeros"]["dead_pct_init_topk"] < random["dead_pct_init_topk"]
    assert ("active_subspace", "zeros") in found


@pytest.mark.usefixtures("extracted")
def test_bf16_select_reports_what_it_changes(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", *SMALL, *TRAINED, "layer=3", "variants=['','precision=bf16_select']")
    assert done.returncode == 0, done.stderr
    exact, cheap = sorted(records(tmp_path), key=lambda record: record["precision"] != "float32")
    assert exact["select_pct_changed"] is None
    assert cheap["select_pct_changed"] < 0.1
    assert abs(cheap["select_fvu_change"]) < 1e-4
    assert cheap["fvu"] == pytest.approx(exact["fvu"], rel=0.01)


@pytest.mark.usefixtures("extracted")
def test_every_type_trains_on_real_activations(here: Run, tmp_path: Path) -> None:
    types = ("relu_april", "batchtopk", "jumprelu", "gated", "matryoshka", "groupmax")
    variants = ",".join(f"'sae={sae}'" for sae in types)
    done = here(
        "sae_outliers.run", *SMALL, *TRAINED, "layer=3", "sae.n_features=512", "train.steps=60", "train.lr=1e-3",
        f"variants=[{variants}]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {record["sae"]: record for record in records(tmp_path)}
    assert sorted(found) == sorted(types)
    for record in found.values():
        curves = pd.read_parquet(tmp_path / "runs/minilm/3" / record["run_id"] / "curves.parquet")
        assert record["fvu"] < 0.9 * curves.fvu.iloc[0]
        assert record["dead_pct_final"] == pytest.approx(curves.dead_pct.iloc[-1])
