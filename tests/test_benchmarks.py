"""`make bench` at a tiny size: that it runs, and what holds of its tables whatever the timings."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.benchmarks import ours, report, stored
from tests.benchmarks.data import Activations
from tests.benchmarks.memory import CLEAR_REFS, MB, peak_extra_mb
from tests.benchmarks.peers import PEERS
from tests.benchmarks.plan import Size
from tests.benchmarks.timing import interleaved
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # `make bench` itself takes 80 s
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--device=cpu", f"--results-dir={results}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert (results / "benchmarks" / "README.md").read_text() in done.stdout
    return results / "benchmarks"


def test_the_product_is_the_unit_of_the_training_steps(written: Path) -> None:
    steps = pd.read_csv(written / "peers.csv").set_index("case")
    assert list(steps.columns) == ["seconds", "seconds_min", "seconds_max", "tokens_per_second", "ratio"]
    assert steps["ratio"][ours.PRODUCT] == 1
    assert (steps > 0).all(axis=None)
    assert (steps["seconds_min"] <= steps["seconds"]).all()
    assert (steps["seconds"] <= steps["seconds_max"]).all()
    for label in (peer.label for peer in PEERS if peer.version()):
        assert {label, f"{label}, its AuxK, {ours.DEAD_PCT} % dead"} <= set(steps.index[8:])


def test_steps_and_points_make_up_a_run(written: Path) -> None:
    cases = pd.read_csv(written / "measuring.csv").set_index("case")
    assert cases["times"].iloc[0] == 500
    assert cases["times"].iloc[1:].sum() * 64 == pytest.approx(10 * 20_000)  # but for the first of 11 points
    assert cases["share_pct"].sum() == pytest.approx(100)
    assert cases["seconds"].gt(0).all()


def test_stacks_are_measured_beside_their_members_alone(written: Path) -> None:
    rows = pd.read_csv(written / "stack.csv")
    assert rows["threads"].unique().tolist() == [1, 2]
    assert rows["members"].tolist() == [1, 2, 2, 4, 2] * 2
    assert rows["revival"].tolist() == ["none", "none", "auxk", "none", "none"] * 2
    assert rows[["product_seconds", "stack_seconds", "stack_ratio", "alone_ratio"]].gt(0).all(axis=None)


def test_shares_of_changed_selections_are_percentages(written: Path) -> None:
    selection = pd.read_csv(written / "selection.csv")
    shares = selection[["selections_differ_pct", "tokens_differ_pct"]]
    assert shares.ge(0).all(axis=None)
    assert shares.le(100).all(axis=None)
    assert set(zip(selection["gamma"], selection["training_steps"], strict=True)) == {(0, 0), (0, 3), (50, 0), (50, 3)}


def test_the_forward_pass_is_the_unit_of_extraction(written: Path) -> None:
    cases = pd.read_csv(written / "extraction.csv").set_index("case")
    assert list(cases.index) == ["forward pass alone", "capturing 1 layer(s)", "and storing them"]
    assert cases["ratio"].iloc[0] == 1
    assert cases.gt(0).all(axis=None)


def test_the_forward_pass_and_the_products_are_the_unit_of_a_diagnosis(written: Path) -> None:
    cases = pd.read_csv(written / "diagnosis.csv").set_index("case")
    assert len(cases) == 3
    assert cases["ratio"].iloc[:2].sum() == pytest.approx(1)
    assert cases.gt(0).all(axis=None)


def test_planning_and_aggregation_are_measured_over_every_model(written: Path) -> None:
    commands = pd.read_csv(written / "whole_sweep.csv")
    assert commands["runs"].tolist() == [19 * 24] * 3
    assert commands[["seconds", "peak_mb"]].gt(0).all(axis=None)


@pytest.mark.parametrize("name", ["death_at_init", "growth"])
def test_time_and_memory_are_given_for_each_size(written: Path, name: str) -> None:
    rows = pd.read_csv(written / f"{name}.csv")
    figures = rows[["seconds", "product_seconds", "ratio", "us_per_token", "weights_mb"]]
    assert figures.gt(0).all(axis=None)
    assert {"d_model", "n_features", "k", "batch"} <= set(rows.columns)
    if CLEAR_REFS.exists():
        assert rows["peak_extra_mb"].ge(0).all()


def test_the_report_names_machine_versions_and_missing_peers(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert f"torch {torch.__version__}" in text
    assert "when it began" in text
    missing = [peer.distribution for peer in PEERS if not peer.version()]
    assert all(name in text for name in missing)
    assert ("make bench-peers" in text) == bool(missing)
    for name in ("growth.png", "stack.png"):
        assert f"({name})" in text
        assert (written / name).stat().st_size > 10_000


def test_what_a_gpu_is_to_run_runs_here_and_names_the_least_that_each_case_takes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--quick", "--device=cpu", f"--results-dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "benchmarks" / "gpu.csv")
    assert list(rows["part"].unique()) == ["device", "training", "death_at_init", "small_stack", "network"]
    timed = rows[rows["part"] != "device"]
    assert timed[["seconds", "least_seconds", "share_pct"]].gt(0).all(axis=None)
    product = timed[timed["case"] == ours.PRODUCT].iloc[0]
    d, n, batch = product["d_model"], product["n_features"], product["batch"]
    flops_s = 1e12 * rows.loc[rows["case"].str.startswith("product in float32"), "figure"].item()
    bytes_s = 1e9 * rows.loc[rows["case"].str.startswith("copying"), "figure"].item()
    assert product["least_seconds"] == pytest.approx(
        max(2 * batch * d * n / flops_s, 4 * (d * n + d * batch) / bytes_s)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_benchmark_says_what_it_can_do_instead() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("torch sees no CUDA GPU here: python -m tests.benchmarks.gpu")
    )


def test_the_dense_twin_takes_the_same_step() -> None:
    size = Size(d_model=16, n_features=64, k=4, batch=32)
    x = Activations(size.d_model).draw(size.batch, CPU)
    trainers = [ours.plain(size, CPU), ours.plain(size, CPU, kind=ours.DenseTopK)]
    for trainer in trainers:
        trainer.train_step(x)
    for sparse, dense in zip(*(trainer.sae.parameters() for trainer in trainers), strict=True):
        assert sparse.grad is not None
        torch.testing.assert_close(sparse.grad, dense.grad)
    assert trainers[0].last_fired.equal(trainers[1].last_fired)


def test_the_dead_features_of_the_auxk_case_stay_dead() -> None:
    trainer = ours.with_dead_features(Size(d_model=256, n_features=1024, k=8, batch=256), CPU)
    x = Activations(256).draw(256, CPU)
    for _ in range(5):
        trainer.train_step(x)
    assert len(trainer.dead()) == 1024 * ours.DEAD_PCT // 100


@pytest.mark.parametrize("gamma", [0, 10])
def test_activations_have_the_severity_and_scale_asked_for(gamma: float) -> None:
    x = Activations(64, gamma, decay=0.5).draw(20_000, CPU).double()
    spread = x.var(0).sum().sqrt()
    assert float(spread) == pytest.approx(math.sqrt(64), rel=0.02)
    assert float(x.mean(0).norm() / spread) == pytest.approx(gamma, rel=0.02, abs=0.02)


def test_every_round_runs_each_case_once_and_begins_with_another() -> None:
    order: list[str] = []
    interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, device=CPU)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux tells the peak of the resident set")
def test_peak_memory_counts_what_a_case_gives_back() -> None:
    def case() -> None:
        torch.ones(25_000_000)  # 100 MB, gone afterwards

    assert peak_extra_mb(case, CPU) == pytest.approx(25_000_000 * 4 / MB, rel=0.1)


def test_reading_16_bits_is_measured_beside_32(tmp_path: Path) -> None:
    report.write_table(tmp_path, "reading", pd.DataFrame(stored.reading(tmp_path, rounds=1)))
    assert pd.read_csv(tmp_path / "reading.csv").gt(0).all(axis=None)


@pytest.mark.weights
def test_every_layer_and_way_to_store_has_a_row(tmp_path: Path) -> None:
    rows = pd.DataFrame(stored.compared("sapiens", tmp_path))
    assert len(rows) == 4 * len(stored.WAYS)
    worst = stored.summary(rows)
    assert worst["gamma_change_1000"]["bfloat16"] > 100 * worst["gamma_change_1000"][stored.CHOSEN]
    assert worst["layers with fates"].tolist() == [4, 1, 1, 1]
