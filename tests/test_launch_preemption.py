"""A task that is told to stop: Submitit's own executor, signal and requeueing, in local processes."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import submitit
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae_outliers.activations import extract as extraction
from sae_outliers.runs.activations import extract, stored_layer
from sae_outliers.runs.execute import run
from sae_outliers.sweeps.slurm.task import SlurmTask, task_outcome
from sae_outliers.sweeps.task import Task
from sae_outliers.utils.preemption import defer_preemption
from tests.conftest import composed

SMALL = (
    "model=synthetic/sparse", "layer=1", "tracker=none", "n_eval=1000", "sae.n_features=512", "sae.k=8",
    "train.n_tokens=20000", "train.steps=200", "train.batch_size=128", "train.eval_every=10",
    "train.checkpoint_every=100000", "train.dead_window=5000", "revival=auxk",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.02)


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def outcome(log: Path, folder: str) -> str | None:
    """How the log says that the run with this folder ended."""
    return task_outcome(Task("", "run", (), (Path(folder),), Path("activations/a-0"), log=str(log)))


def submitted(folder: Path, *tasks: tuple[str, tuple[str, ...]]) -> "submitit.Job[None]":
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=60)
    return executor.submit(SlurmTask(tasks))


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the task in /proc")
def test_a_training_told_to_stop_is_requeued_and_ends_with_bitwise_the_weights_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    job = submitted(tmp_path / "jobs", ("mark", (*SMALL, f"results_dir={tmp_path / 'cut'}")))
    wait_for(lambda: [p for p in (tmp_path / "cut").glob("runs/*/1/*/metrics.jsonl") if len(p.open().readlines()) > 3])
    os.kill(child_of(int(job.job_id)), signal.SIGUSR2)
    wait_for(lambda: list((tmp_path / "cut").glob("runs/*/1/*/checkpoint.safetensors")))
    (checkpoint,) = (tmp_path / "cut").glob("runs/*/1/*/checkpoint.safetensors")
    with safe_open(checkpoint, framework="pt") as file:
        stopped_at = int(file.metadata()["step"])
    assert 30 <= stopped_at < 200

    whole = composed(*SMALL, f"results_dir={tmp_path / 'whole'}")
    run(whole, [whole])
    job.result()
    assert "Requeued job" in (job.stderr() or "") + (job.stdout() or "")
    assert outcome(job.paths.stderr, "mark") == ""
    one, other = (next(tmp_path.glob(f"{d}/runs/*/1/*/sae.safetensors")) for d in ("cut", "whole"))
    resumed, undisturbed = load_file(one), load_file(other)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    assert (one.parent / "metrics.jsonl").read_text() == (other.parent / "metrics.jsonl").read_text()


class Requeued(Exception):
    """Stands for the exit of a process that Submitit has requeued."""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """A handler is there, as under Submitit; it notes the signal, and raises the first time."""
    came: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Requeued

    before = signal.signal(signal.SIGUSR2, handler)
    yield came
    signal.signal(signal.SIGUSR2, before)


def test_an_extraction_told_to_stop_writes_what_it_has_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handled: list[int]
) -> None:
    overrides = ("model=synthetic/sparse", "train=none", "n_eval=3000", "data.batch_size=1")
    cut, whole = (composed(*overrides, f"results_dir={tmp_path / name}") for name in ("cut", "whole"))
    seen = itertools.count(1)
    update = extraction.Forecast.update

    def update_and_signal(*arguments: Any) -> None:
        update(*arguments)
        if next(seen) == 3:
            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(extraction.Forecast, "update", update_and_signal)
    with pytest.raises(Requeued):
        extract(cut, [1])
    files = stored_layer(cut, 1).exact
    assert files.extent().items == 3  # and not one of them twice
    extract(cut, [1])
    extract(whole, [1])
    assert files.rows_path.read_bytes() == stored_layer(whole, 1).exact.rows_path.read_bytes()


def test_where_nobody_handles_the_signal_nothing_is_held_back() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    with defer_preemption():
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_comes_too_late_for_a_step_is_delivered_at_the_end_of_the_block(handled: list[int]) -> None:
    block = defer_preemption()
    held = block.__enter__()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert held.received
    assert handled == []
    with pytest.raises(Requeued):
        block.__exit__(None, None, None)
    assert handled == [signal.SIGUSR2]


def test_a_failing_run_does_not_stop_the_others_of_its_pack_and_each_says_how_it_ended(tmp_path: Path) -> None:
    place = ("train=none", *SMALL, "train.steps=0", f"results_dir={tmp_path}")
    job = submitted(tmp_path / "jobs", ("bad", (*place, "preprocessing=zscore")), ("good", place))
    assert isinstance(job.exception(), submitit.core.utils.FailedJobError)
    assert len(list(tmp_path.glob("runs/synthetic/1/*/record.json"))) == 1
    assert outcome(job.paths.stderr, "good") == ""
    assert outcome(job.paths.stderr, "bad") == "preprocessing=zscore does not exist: use one of postln, raw"
    assert (outcome(job.paths.stderr, "other") or "").startswith("ValueError: preprocessing=zscore")
    assert outcome(tmp_path / "absent", "bad") is None
