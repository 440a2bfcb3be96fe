"""Sweeps in local processes: one extraction a model, failures that stay alone, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT, Run

pytestmark = pytest.mark.weights
SMALL = ("n_eval=1000", "sae.n_features=512", "sae.k=8", "tracker=none")


def records(directory: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(path.read_text()) for path in sorted(directory.glob("runs/*/*/*/record.json"))]


def test_one_job_per_model_and_layer_for_all_centerings_from_one_extraction_each_and_none_the_second_time(
    here: Run, tmp_path: Path
) -> None:
    arguments = (
        "-m", "model=glob(offline/*,exclude=[offline/smollm2,offline/spliceai,offline/vit_s14,offline/e*,offline/a*])",
        "layer=all", "centering=off,on", "train=none", *SMALL,
    )  # fmt: skip
    done = here("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 job(s) done, 0 finished before, 0 failed" in done.stdout
    assert "12 task(s) in" in done.stdout  # with the extractions
    found = {(r["model"], r["layer"], r["centering"]) for r in records(tmp_path)}
    layers = [("minilm", i) for i in range(1, 7)] + [("sapiens", i) for i in range(1, 5)]
    assert found == {(model, layer, centering) for model, layer in layers for centering in ("off", "on")}
    assert len(list((tmp_path / "activations").iterdir())) == 2
    again = here("sae_outliers.run", *arguments)
    assert again.returncode == 0
    assert "0 job(s) done, 10 finished before, 0 failed" in again.stdout


def test_an_experiment_brings_its_sweep_along_and_the_command_line_narrows_it(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", "-m", "model=offline/sapiens", "experiment=init", "layer=2,3", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(r["layer"], r["centering"]) for r in records(tmp_path)} == {(i, c) for i in (2, 3) for c in ("off", "on")}


def test_one_job_and_its_extraction_run_one_after_the_other_with_all_cores(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", "-m", "model=offline/sapiens", "layer=2", "train=none", "centering=off", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 task(s) in 1 local process(es) at a time" in done.stdout
    assert len(records(tmp_path)) == 1


def test_a_sweep_that_may_use_one_core_runs_one_job_at_a_time(here: Run, tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})  # inherited by the sweep, as from taskset and from SLURM
    try:
        done = here("sae_outliers.run", "-m", "model=offline/sapiens", "layer=2,3", "train=none", *SMALL)
    finally:
        os.sched_setaffinity(0, usable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 task(s) in 1 local process(es) at a time" in done.stdout


def test_each_model_of_a_sweep_has_its_own_layers(here: Run, tmp_path: Path) -> None:
    arguments = ("-m", "model=offline/minilm,offline/sapiens", "train=none", *SMALL)
    done = here("sae_outliers.run", *arguments, "layer={minilm:5,sapiens:[1,4]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(r["model"], r["layer"]) for r in records(tmp_path)} == {("minilm", 5), ("sapiens", 1), ("sapiens", 4)}
    done = here("sae_outliers.run", *arguments, "layer={minilm:5}")
    assert done.returncode == 1
    assert "layer={minilm:5} names no layer of sapiens: add sapiens:<layer>" in done.stdout + done.stderr


def test_a_failing_job_and_a_failing_extraction_are_named_and_the_others_go_on(here: Run, tmp_path: Path) -> None:
    done = here(
        "sae_outliers.run", "-m", "model=offline/minilm,offline/sapiens", "layer=1,2", "train=none", *SMALL,
        "init=active_subspace", "init.rank=8,999", "data.source={_target_: tests.test_sweep.nothing_for_sapiens}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "2 job(s) done, 0 finished before, 6 failed" in done.stdout
    assert done.stdout.count("init.rank=999 exceeds d_model=384: lower it") == 2
    assert done.stdout.count("no activations: data=") == 4
    assert {(r["model"], r["layer"]) for r in records(tmp_path)} == {("minilm", 1), ("minilm", 2)}


def nothing_for_sapiens(**options: object) -> Callable[[int], list[str]]:
    """Enough English for MiniLM; in a protein model's windows of 142 residues, too little."""
    text = "Outlier dimensions have a mean that is large beside their variation. "
    return lambda seed: [f"{number} {text * 6}" for number in range(15)]


@pytest.mark.parametrize(("arguments", "message"), [
    (["model=glob(offlin/*)"], "model=glob(offlin/*) names nothing in conf/model/"),
    (["model=offline/minilm", "layer=9,1"], "layer=9 does not exist: this model has layers 1 to 6"),
    (["model=offline/minilm", "train.stepz=1,2"], "train.stepz"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_planned_says_why_before_anything_runs(
    arguments: list[str], message: str, here: Run, tmp_path: Path
) -> None:
    done = here("sae_outliers.run", "-m", *arguments, *SMALL)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


TRAIN = (
    "model=synthetic/sparse", "layer=1", "centering=off,on", "train.steps=2000", "train.n_tokens=3000",
    "train.batch_size=256", "train.eval_every=100", "train.checkpoint_every=20",
)  # fmt: skip


def start(directory: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "sae_outliers.run", "-m", *TRAIN, *SMALL, f"results_dir={directory}", *more]
    return subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the sweep did not get there"
        time.sleep(0.05)


def job_processes(directory: Path) -> list[int]:
    """Processes that have a file of the sweep open: its jobs hold their output.log."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(directory)) for link in links):
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the jobs in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_sweep_leaves_no_jobs_and_ends_with_the_same_weights_when_called_again(
    how: signal.Signals, here: Run, tmp_path: Path
) -> None:
    sweep = start(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("runs/synthetic/1/*/checkpoint.safetensors"))) == 2)
    assert len(job_processes(tmp_path)) >= 2
    sweep.send_signal(how)
    output, _ = sweep.communicate(timeout=30)
    if how == signal.SIGINT:
        assert sweep.returncode == 130
        assert output.endswith("interrupted with 0 of 2 job(s) done: the same command goes on from there\n")
    wait_for(lambda: not job_processes(tmp_path), 20)
    assert records(tmp_path) == []

    whole = tmp_path / "whole"
    for directory in (tmp_path, whole):
        done = here("sae_outliers.run", "-m", *TRAIN, *SMALL, f"results_dir={directory}")
        assert done.returncode == 0, done.stdout
    finished = list(whole.glob("runs/synthetic/1/*"))
    assert len(finished) == 2
    for uninterrupted in finished:
        resumed = tmp_path / uninterrupted.relative_to(whole)
        one, other = (load_file(d / "sae.safetensors") for d in (resumed, uninterrupted))
        assert all(torch.equal(one[name], other[name]) for name in other)
        assert (resumed / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the jobs in /proc")
def test_a_job_that_is_killed_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    sweep = start(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("runs/synthetic/1/*/checkpoint.safetensors"))) == 2)
    os.kill(next(pid for pid in job_processes(tmp_path) if pid != sweep.pid), signal.SIGKILL)
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 1
    assert "1 job(s) done, 0 finished before, 1 failed" in output
    assert "its process ended with exit code -9" in output
    assert len(records(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the jobs in /proc")
def test_submitits_launcher_runs_the_sweep_and_a_killed_job_is_named_there_too(tmp_path: Path) -> None:
    submitit = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    sweep = start(tmp_path, *submitit)
    wait_for(lambda: len(list(tmp_path.glob("runs/synthetic/1/*/checkpoint.safetensors"))) == 2)
    (off,) = (path for path in tmp_path.glob("runs/synthetic/1/*/.lock") if is_off(path.with_name("config.yaml")))
    for pid in job_processes(tmp_path):
        if pid != sweep.pid and str(off) in (os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()):
            os.kill(pid, signal.SIGKILL)
    output, _ = sweep.communicate(timeout=280)
    assert sweep.returncode == 1
    assert "failed: synthetic layer 1 topk centering=off: the launcher gave up" in output

    again = start(tmp_path, *submitit)
    output, _ = again.communicate(timeout=280)
    assert again.returncode == 0, output
    assert {record["centering"] for record in records(tmp_path)} == {"off", "on"}


def is_off(config: Path) -> bool:
    return yaml.safe_load(config.read_text())["centering"]["name"] == "off"


def test_variants_are_one_job_with_a_record_each_and_what_is_finished_is_left_out(here: Run, tmp_path: Path) -> None:
    arguments = ("model=offline/minilm", "layer=1,2", *SMALL, "train.steps=10", "train.n_tokens=2000",
                 "train.batch_size=64", "train.dead_window=100")  # fmt: skip
    first = here("sae_outliers.run", "-m", *arguments, "revival=auxk")
    assert first.returncode == 0, first.stdout + first.stderr
    done = here("sae_outliers.run", "-m", *arguments, "variants=['revival=auxk','centering=on sae.k=4']")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 job(s) done, 0 finished before, 0 failed" in done.stdout
    found = {(r["layer"], r["revival"], r["centering"], r["k"], r["side_by_side"]) for r in records(tmp_path)}
    expected = {("auxk", "off", 8, 1), ("none", "on", 4, 1)}  # the first was there, so each was trained alone
    assert found == {(layer, *condition) for layer in (1, 2) for condition in expected}
    again = here("sae_outliers.run", "-m", *arguments, "variants=['revival=auxk','centering=on sae.k=4']")
    assert "0 job(s) done, 2 finished before" in again.stdout
