"""The table of a sweep's runs, from real locks, progress lines and files; a small program stands in for squeue."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from sae_outliers.results.curves import MetricsFile
from sae_outliers.status import status, to_retry
from sae_outliers.sweeps import throughput
from sae_outliers.sweeps.manifest import Manifest, read_manifests, write_manifest
from sae_outliers.sweeps.slurm.queue import slurm_queue
from sae_outliers.sweeps.state import Sweeps
from sae_outliers.sweeps.task import Task
from sae_outliers.utils import progress
from sae_outliers.utils.files import is_locked
from sae_outliers.utils.progress import duration
from tests.conftest import ROOT

STORE = "activations/minilm-0a"


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether the machine has a cluster is no part of these tests."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}")


def answer(tmp_path: Path, *lines: str, status: int = 0) -> None:
    """A squeue that prints these lines."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    script = tmp_path / "bin/squeue"
    prints = "".join(f"print({line!r})\n" for line in lines)
    script.write_text(f"#!{sys.executable}\nimport sys\n{prints}sys.exit({status})\n")
    script.chmod(0o755)


def task(layer: int, job: str | None = None, log: Path | None = None, **changes: object) -> Task:
    """A task below a results folder that `sweep` puts in front."""
    values = {"name": f"minilm layer {layer}", "kind": "run", "overrides": (), "results": [f"runs/minilm/{layer}/a"]}
    return Task(**{**values, "store": STORE, "job": job, "log": log and str(log), **changes})  # type: ignore[arg-type]


def extraction(job: str | None = None, log: Path | None = None) -> Task:
    return task(0, job, log, name="minilm activations", kind="extract", results=[])


def sweep(results: Path, *tasks: Task, name: str = "s", launcher: str = "slurm", **changes: object) -> Manifest:
    values = {"command": ["model=offline/minilm"], "commit": "c", "created": "2026-01-01T10:00:00+00:00"}
    below = [
        replace(task, results=tuple(results / folder for folder in task.results), store=results / task.store)
        for task in tasks
    ]
    manifest = Manifest(**{"name": name, "launcher": launcher, "tasks": below, **values, **changes})  # type: ignore[arg-type]
    write_manifest(results, manifest)
    return manifest


def folder(results: Path, layer: int) -> Path:
    directory = results / f"runs/minilm/{layer}/a"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def finish(results: Path, layer: int) -> None:
    (folder(results, layer) / "record.json").write_text("{}")


def log_of(tmp_path: Path, name: str, *lines: str) -> Path:
    path = tmp_path / f"{name}.err"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def held() -> Iterator[list[FileLock]]:
    """Locks that the test takes; let go at its end."""
    taken: list[FileLock] = []
    yield taken
    for lock in taken:
        lock.release()


def hold(held: list[FileLock], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    held.append(FileLock(directory / ".lock"))
    held[-1].acquire()


def found(results: Path) -> dict[int, str]:
    """State by layer."""
    return {int(run.layer): run.state for run in Sweeps(results, read_manifests(results)).runs()}


# --- states


def test_states_of_jobs_in_slurm(tmp_path: Path) -> None:
    answer(tmp_path, "7_1 RUNNING", "7_2 PENDING", "7_4 COMPLETING", "8_0 REQUEUED", "99 RUNNING")
    sweep(tmp_path, *(task(i, f"7_{i}") for i in range(1, 5)), task(5, "8_0"), task(6, "7_6"), task(7), task(8, "7_8"))
    finish(tmp_path, 7)
    folder(tmp_path, 8)
    assert found(tmp_path) == {
        1: "running", 2: "queued", 3: "failed", 4: "running", 5: "queued", 6: "failed", 7: "done", 8: "failed",
    }  # fmt: skip
    sweep(tmp_path, task(9), name="never submitted")
    assert found(tmp_path)[9] == "missing"


def test_squeue_is_asked_for_every_task_of_an_array_of_this_user(tmp_path: Path) -> None:
    answer(tmp_path)
    script = tmp_path / "bin/squeue"
    script.write_text(f"#!{sys.executable}\nimport sys\nprint(','.join(sys.argv[1:]).replace(' ', '_'), 'PENDING')\n")
    assert slurm_queue() == {f"--user={os.getuid()},--array,--noheader,--format=%i_%T": "queued"}


def test_states_in_local_processes(tmp_path: Path, held: list[FileLock]) -> None:
    logs = {i: tmp_path / f"{i}.log" for i in range(1, 5)}
    sweep(tmp_path, *(task(i, log=logs[i]) for i in logs), launcher="local")
    for i in (1, 2, 3):
        logs[i].write_text("x\n")
    finish(tmp_path, 1)
    hold(held, folder(tmp_path, 2))
    assert found(tmp_path) == {1: "done", 2: "running", 3: "failed", 4: "queued"}
    held.pop().release()
    assert found(tmp_path) == {1: "done", 2: "failed", 3: "failed", 4: "missing"}  # the sweep is no more at work


def test_the_runs_of_a_local_sweep_wait_while_it_extracts(tmp_path: Path, held: list[FileLock]) -> None:
    sweep(tmp_path, extraction(), task(1, log=tmp_path / "1.log"), launcher="local")
    assert found(tmp_path) == {1: "missing"}
    hold(held, tmp_path / STORE)
    assert found(tmp_path) == {1: "queued"}
    assert "running:\n  minilm activations: no steps yet\n" in status(tmp_path)


def test_of_several_sweeps_the_one_that_is_at_work_on_a_run_decides(tmp_path: Path) -> None:
    answer(tmp_path, "7_1 RUNNING")
    sweep(tmp_path, task(1, "7_1", name="old"), task(2, "7_2"), name="a", created="2026-01-01T10:00:00+00:00")
    sweep(tmp_path, task(1, "9_1", name="new"), task(2), name="b", created="2026-01-02T10:00:00+00:00")
    assert found(tmp_path) == {1: "running", 2: "failed"}
    assert "old (a): " in status(tmp_path)


def test_runs_outside_sweeps_count_where_they_are_done_or_running(tmp_path: Path, held: list[FileLock]) -> None:
    for layer in (1, 2, 3):
        (folder(tmp_path, layer) / "config.yaml").write_text("train: {steps: 0}\n")
    finish(tmp_path, 1)
    hold(held, folder(tmp_path, 2))
    assert found(tmp_path) == {1: "done", 2: "running"}


def test_a_lock_is_asked_for_without_making_or_keeping_one(tmp_path: Path, held: list[FileLock]) -> None:
    assert not is_locked(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()
    hold(held, tmp_path)
    assert is_locked(tmp_path / ".lock")
    held.pop().release()
    assert not is_locked(tmp_path / ".lock")
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


# --- the table


def cells(text: str, model: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{model} "))
    return re.split(r"\s{2,}", line.strip())


def test_the_table_counts_and_names_what_failed_with_its_last_line(tmp_path: Path) -> None:
    answer(tmp_path, "7_3 PENDING")
    log = log_of(tmp_path, "failed", "Traceback", "ValueError: no such thing", "", "  ")
    other = task(4, "7_4", name="sapiens layer 4", results=["runs/sapiens/4/b", "runs/sapiens/4/c"])
    sweep(tmp_path, task(1, "7_1"), task(2, "7_2", log), task(3, "7_3"), other, task(5))
    finish(tmp_path, 1)
    text = status(tmp_path)
    assert cells(text, "minilm") == ["minilm", "4", "1", "0", "1", "1", "1"]
    assert cells(text, "sapiens") == ["sapiens", "2", "0", "0", "0", "2", "0"]
    assert cells(text, "total") == ["total", "6", "1", "0", "1", "3", "1"]
    assert f"failed:\n  minilm layer 2: ValueError: no such thing\n    {log}\n" in text
    assert text.count("sapiens layer 4: it wrote nothing\n    no log\n") == 1  # a task, though of two runs
    assert "\x1b" not in text


def test_a_run_whose_extraction_failed_points_there(tmp_path: Path) -> None:
    answer(tmp_path)
    log = log_of(tmp_path, "extraction", "ValueError: the data ends")
    sweep(tmp_path, extraction("6", log), task(1, "7_1", tmp_path / "never written.err"))
    said = f"minilm layer 1: it wrote nothing; its activations: ValueError: the data ends\n    {log}\n"
    assert said in status(tmp_path)


def test_a_silent_squeue_is_no_error_but_said(tmp_path: Path) -> None:
    sweep(tmp_path, task(1, "7_1"))
    for silent in (False, True):
        if silent:
            answer(tmp_path, status=1)
        text = status(tmp_path)
        assert "squeue does not answer" in text
        assert cells(text, "minilm")[5] == "1"
    answer(tmp_path)
    assert "squeue does not answer" not in status(tmp_path)
    assert status(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no runs and no sweeps yet\n"


# --- throughput


def progress_lines(monkeypatch: pytest.MonkeyPatch, title: str, total: int, *done: tuple[float, int]) -> str:
    """What the real bar writes to a log when `done` is reached at these seconds."""
    seconds = iter([0.0, *(at for at, _ in done)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with redirect_stderr(io.StringIO()) as written, progress.Progress(title, total, "steps") as bar:
        for _, steps in done:
            bar.update(steps)
    return written.getvalue()


def write_curve(directory: Path, *steps: int, batch: int = 100) -> None:
    metrics = MetricsFile(directory / "metrics.jsonl", lambda point: None)
    for step in steps:
        metrics.write({"step": step, "tokens": step * batch})


def test_speed_and_time_left_are_those_of_the_progress_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "minilm layer 1: topk off"
    lines = progress_lines(monkeypatch, title, 1000, (20.0, 300), (40.0, 340), (60.0, 380), (61.0, 383))
    monkeypatch.undo()
    log = log_of(tmp_path, "log", "minilm layer 1: topk on: 90/1000 steps, 90 s", *lines.splitlines(), "a warning")
    directory = folder(tmp_path, 1)
    write_curve(directory, 0, 100, 200, 350)
    measured = throughput.run_throughput(directory, str(log))
    assert (measured.done, measured.total, measured.tokens) == (380, 1000, 100)
    assert measured.per_second == pytest.approx((380 - 300) / 40 * 100)  # it was resumed at a step nobody wrote down
    assert throughput.seconds_left([measured], 0) == pytest.approx(620 / 2)
    assert throughput.seconds_left([measured, measured], 4) == pytest.approx((2 * 620 + 4 * 1000) / 4)


def test_two_loops_under_one_title_are_not_taken_for_one(tmp_path: Path) -> None:
    title = "minilm layer 1: topk off"
    log = log_of(
        tmp_path, "log", *(f"{title}: {n}/90 steps, {s} s" for n, s in ((10, 15), (80, 60), (50, 15), (56, 18)))
    )
    assert throughput._progress(str(log), "minilm layer 1: ") == (56, 90, 2.0)
    assert throughput._progress(str(log), "minilm layer 11: ") == (0, 0, None)


def test_without_a_log_the_curve_and_the_config_say_how_far_a_run_is(tmp_path: Path) -> None:
    directory = folder(tmp_path, 1)
    assert throughput.run_throughput(directory, None) == throughput.Throughput()
    (directory / "config.yaml").write_text("train:\n  steps: 400\n")
    write_curve(directory, 0, 50)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "tok')  # is being written
    assert throughput.run_throughput(directory, None) == throughput.Throughput(50, 400, 100.0, None)
    assert throughput.seconds_left([throughput.run_throughput(directory, None)], 3) is None


def test_running_tasks_are_listed_with_step_speed_and_time(tmp_path: Path) -> None:
    answer(tmp_path, "6 RUNNING", "7_1 RUNNING", "7_2 PENDING")
    of_extraction = [f"minilm: activations of 2 layer(s): {n}/9000 tokens, {s} s" for n, s in ((1000, 15), (4000, 30))]
    of_run = [f"minilm layer 1: topk off: {n}/800 steps, {s} s" for n, s in ((30, 15), (60, 30))]
    sweep(
        tmp_path,
        extraction("6", log_of(tmp_path, "extraction", *of_extraction)),
        task(1, "7_1", log_of(tmp_path, "run", *of_run)),
        task(2, "7_2"),
    )
    write_curve(folder(tmp_path, 1), 0, 50)
    text = status(tmp_path)
    assert "  minilm activations: token 4000 of 9000, 200 tokens/s, 25 s left\n" in text
    assert "  minilm layer 1 (a): step 60 of 800, 200 tokens/s, 6 min left\n" in text
    assert cells(text, "minilm") == [
        "minilm",
        "2",
        "0",
        "1",
        "1",
        "0",
        "0",
        "200",
        "13 min",
    ]  # and a whole run after it


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_pipes_in_the_place_of_files_hold_nobody_up(tmp_path: Path, held: list[FileLock]) -> None:
    """Anybody who can write to a shared folder can leave one there; the first reader of it would wait for ever."""
    for layer, names in enumerate([["record.json", ".lock"], ["config.yaml", "metrics.jsonl"]]):
        for name in names:
            os.mkfifo(folder(tmp_path, layer) / name)
    (folder(tmp_path, 0) / "config.yaml").touch()
    hold(held, folder(tmp_path, 1))
    os.mkfifo(tmp_path / "log")
    sweep(tmp_path, task(0, log=tmp_path / "log"), task(1, log=tmp_path / "log"), launcher="local")
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(status(tmp_path)), daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert "minilm layer 1 (a): no steps yet" in said[0]
    os.mkfifo(tmp_path / "sweeps/another.json")
    with pytest.raises(OSError, match=r"another\.json is not a regular file"):
        status(tmp_path)


# --- retry


def retried(results: Path) -> list[list[str]]:
    return to_retry(Sweeps(results, read_manifests(results)))


def test_a_command_is_retried_once_if_a_run_of_it_failed_or_is_missing(tmp_path: Path) -> None:
    answer(tmp_path, "7_3 PENDING")
    days = iter(range(1, 9))

    def launched(command: str, *tasks: Task) -> None:
        day = next(days)
        sweep(tmp_path, *tasks, name=str(day), command=[command], created=f"2026-01-0{day}T10:00:00+00:00")

    launched("failed=1", task(1, "7_1"))
    launched("queued=1", task(3, "7_3"))
    launched("missing=1", task(4))
    launched("done=1", task(2, "7_2"))
    launched("failed=1", task(1, "8_1"))
    finish(tmp_path, 2)
    assert retried(tmp_path) == [["failed=1"], ["missing=1"]]
    finish(tmp_path, 1)
    assert retried(tmp_path) == [["missing=1"]]


def ask(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sae_outliers.status", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_retry_runs_the_command_on_these_results_and_says_so(tmp_path: Path) -> None:
    command = ["model=synthetic/sparse", "data=gone", "results_dir=elsewhere"]
    sweep(tmp_path, task(1), command=command, launcher="local")
    done = ask(tmp_path, "retry=true", f"results_dir={tmp_path}")
    again = f"running again: -m sae_outliers.run -m model=synthetic/sparse data=gone results_dir={tmp_path}\n"
    assert done.stdout.startswith(again)
    assert "data/gone" in done.stderr  # Hydra's own words, and its status
    assert done.returncode == 1
    finish(tmp_path, 1)
    done = ask(tmp_path, "retry=true", f"results_dir={tmp_path}")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}: nothing has failed, and nothing is missing\n")


def test_retry_does_nothing_where_slurm_does_not_say_what_it_has(tmp_path: Path) -> None:
    sweep(tmp_path, task(1, "7_1"))
    done = ask(tmp_path, "retry=true", f"results_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr == "squeue does not answer, so nobody knows which jobs have failed: try again when it does\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [("resultsdir=x", "Key 'resultsdir' not in 'StatusConfig'"), ("watch=often", "'often' of type 'str' could not be")],
)
def test_a_wrong_argument_is_named(tmp_path: Path, argument: str, message: str) -> None:
    done = ask(tmp_path, argument)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_watch_looks_again_until_it_is_interrupted(tmp_path: Path) -> None:
    sweep(tmp_path, task(1, "7_1"))
    command = [sys.executable, "-m", "sae_outliers.status", "watch=0.1", f"results_dir={tmp_path}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as watching:  # fmt: skip
        assert watching.stdout
        lines = iter(watching.stdout.readline, "")
        assert any(line.split()[:3] == ["minilm", "1", "0"] for line in lines)
        finish(tmp_path, 1)
        assert any(line.split()[:3] == ["minilm", "1", "1"] for line in lines)
        watching.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 20
        while watching.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert watching.returncode == 130
        assert "Traceback" not in (watching.stderr.read() if watching.stderr else "")


def test_a_broken_manifest_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/x.json").write_text(json.dumps({"tasks": []}))
    done = ask(tmp_path, f"results_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path}/sweeps/x.json is not a valid sweep manifest")
