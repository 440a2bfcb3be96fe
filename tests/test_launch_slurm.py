"""What surrounds SLURM: the launcher that is chosen, the copy of the code, other sweeps, the end of jobs.

Small programs stand in for SLURM's where it must answer in a way that a healthy cluster does not; the real one is in
tests/slurm.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_outliers.sweeps import snapshot
from sae_outliers.sweeps.manifest import Manifest, write_manifest
from sae_outliers.sweeps.plan import Plan
from sae_outliers.sweeps.scheduler import InFlight, automatic, in_flight
from sae_outliers.sweeps.schedulers.slurm import failures
from sae_outliers.sweeps.slurm import queue
from sae_outliers.sweeps.slurm.arrays import arrays_of
from sae_outliers.sweeps.slurm.profile import Site
from sae_outliers.sweeps.slurm.queue import wait_for_end
from sae_outliers.sweeps.slurm.submit import (
    Submission,
    environment,
    format_array,
    keep_activations_in,
    outside_of_jobs,
)
from sae_outliers.sweeps.slurm.task import DONE, FAILED
from sae_outliers.sweeps.snapshot import take_snapshot
from sae_outliers.sweeps.task import Task
from sae_outliers.utils import provenance
from tests.conftest import ROOT, Run


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, and after it no SLURM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for needed in ("sh", "cat", "bash", "echo", "git"):
        (folder / needed).symlink_to(shutil.which(needed) or "")
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}")
    return folder


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_slurm_is_chosen_where_sbatch_is_there_and_sinfo_answers(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert automatic() == "local"
    assert capsys.readouterr().out == "local processes: there is no sbatch on the path\n"
    program(programs, "sbatch", "exit 1")
    program(programs, "sinfo", "echo 'sinfo: error: nobody there' >&2; exit 1")
    assert automatic() == "local"
    assert capsys.readouterr().out == "local processes: sbatch is there, but sinfo does not answer\n"
    program(programs, "sinfo", "echo 'main* up infinite 4 idle'")
    assert automatic() == "slurm"
    assert capsys.readouterr().out.startswith("SLURM: sinfo answers")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project with a commit of its own, from which snapshots are taken."""
    folder = tmp_path / "checkout"
    for name in ("conf", "launch", "sae_outliers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (folder / ".gitignore").write_text("__pycache__/\nconf/local/\nignored/\n")
    (folder / "results").mkdir()
    (folder / "results" / "table.csv").write_text("a result in git\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(snapshot, "CHECKOUT", folder)
    monkeypatch.setattr(provenance, "CHECKOUT", folder)
    return folder


def head(checkout: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_snapshot_has_what_git_has_or_would_take_and_the_users_own_config(checkout: Path, tmp_path: Path) -> None:
    for path, content in {
        "conf/model/mine.yaml": "new", "conf/local/default.yaml": "own", "ignored/x": "", "runs/out/y": "",
    }.items():  # fmt: skip
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(content)
    with (checkout / "activations.f32").open("wb") as large:
        large.truncate(snapshot.MAX_BYTES + 1)
    (checkout / "conf/init/random.yaml").unlink()
    code = take_snapshot(checkout / "runs" / "code", checkout / "runs")
    assert (code / "conf/model/mine.yaml").read_text() == "new"
    assert (code / "conf/local/default.yaml").read_text() == "own"
    for absent in ("ignored", "runs", "activations.f32", "conf/init/random.yaml", "results", ".git"):
        assert not (code / absent).exists(), absent
    assert (code / "COMMIT").read_text() == f"{head(checkout)}-dirty\n"
    shutil.rmtree(checkout / ".git")  # as an unpacked archive
    code = take_snapshot(tmp_path / "again", checkout / "runs")
    assert (code / "sae_outliers/run.py").is_file()
    assert (code / "COMMIT").read_text() == "unknown\n"


def test_a_job_runs_the_code_as_it_was_when_it_was_submitted_and_its_record_names_the_commit(
    checkout: Path, tmp_path: Path
) -> None:
    code = take_snapshot(tmp_path / "sweep" / "code")
    (checkout / "sae_outliers" / "stats" / "moments.py").write_text(
        "raise SystemExit('changed after the submission')\n"
    )
    arguments = "model=synthetic/sparse train=none n_eval=300 sae.n_features=64 sae.k=8 tracker=none"
    command = f"{sys.executable} -m sae_outliers.run {arguments} results_dir={tmp_path / 'results'}"
    lines = [*environment(Site(), code), command]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)], cwd=checkout, capture_output=True, text=True,
        env=kept | {"PYTHONPATH": str(checkout), "SLURM_CPUS_PER_TASK": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "results").glob("runs/*/*/*/record.json")
    assert json.loads(record.read_text())["git_commit"] == head(checkout)


def run_task(number: int, store: str = "activations/a-0") -> Task:
    return Task(f"a {number}", "run", (f"layer={number}",), (Path(f"runs/a/{number}/x"),), Path(store))


def extract_task(store: str = "activations/a-0") -> Task:
    return Task("a activations", "extract", ("task=extract",), (), Path(store))


def test_what_other_sweeps_have_in_the_queue_is_known_from_their_manifests(programs: Path, tmp_path: Path) -> None:
    assert in_flight(tmp_path, "slurm") == InFlight()
    store = tmp_path / "activations/a-0"
    runs = {number: (tmp_path / f"runs/a/{number}/x",) for number in (0, 1, 9)}
    tasks = [
        Task("e", "extract", (), (), store, "7"),
        Task("0", "run", (), runs[0], store, "8_0"),
        Task("1", "run", (), runs[1], store, "8_1"),
        Task("never submitted", "run", (), runs[9], store),
    ]
    write_manifest(tmp_path, Manifest("s", [], "slurm", "c", tasks))
    program(programs, "squeue", "echo '7 RUNNING'; echo '8_1 PENDING'; echo '9_9 PENDING'")
    assert in_flight(tmp_path, "slurm") == InFlight({tmp_path / "runs/a/1/x"}, {store: ["7"]})
    assert in_flight(tmp_path, "local") == InFlight({tmp_path / "runs/a/1/x"}, {})  # which cannot wait for a SLURM job
    program(programs, "squeue", "exit 1")
    with pytest.raises(ValueError, match="names jobs of slurm, and squeue does not answer: try again when it does"):
        in_flight(tmp_path, "slurm")
    assert in_flight(tmp_path, "local") == InFlight()  # runs' locks keep local processes off those of SLURM's


def test_runs_wait_for_their_extraction_and_an_extraction_for_others_of_its_store(tmp_path: Path) -> None:
    planned = Plan([extract_task()], [run_task(1), run_task(2, "activations/b-0")], 0)
    others = InFlight(extractions={Path("activations/a-0"): ["41", "40"]})
    submission = Submission(tmp_path, Site(), tmp_path, others)
    extraction, run_a, run_b = arrays_of(planned, 1, 10)
    assert submission.dependency(extraction) == "afterany:40:41"
    submission.extracting[Path("activations/a-0")] = "42"
    assert submission.dependency(run_a) == "afterok:42"
    assert submission.dependency(run_b) is None  # its activations are there


def test_what_sbatch_refuses_is_said_and_the_rest_is_submitted(programs: Path, tmp_path: Path) -> None:
    program(programs, "srun", "exit 1")
    refusal = "sbatch: error: AssocMaxSubmitJobLimit"
    script = f"""case $(cat "$1") in
      *"job-name='a extract'"*) echo '{refusal}' >&2; exit 1;;
      *) echo 'Submitted batch job 5';;
    esac"""
    program(programs, "sbatch", script)
    other = Task("b 1", "run", ("layer=1",), (Path("runs/b/1/x"),), Path("activations/b-0"))
    more = Task("b 2", "run", ("layer=2",), (Path("runs/b/2/x"),), Path("activations/b-0"))
    planned = Plan([extract_task()], [run_task(1), other, more], 0)
    submission = Submission(tmp_path, Site(), tmp_path, InFlight())
    for array in arrays_of(planned, 1, 10):
        submission.submit(array)
    assert submission.refused[planned.extractions[0]] == f"not submitted: {refusal}"
    assert submission.refused[run_task(1)] == f"no activations: not submitted: {refusal}"
    assert [task.job for task in planned.jobs] == [None, "5_0", "5_1"]
    assert more.log == str(tmp_path / "b-0" / "5_1_0_log.err")


def test_a_job_is_over_when_the_queue_has_missed_it_twice_in_a_row(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As squeue may show a job whose node failed: gone for a moment, then requeued; and once it does not answer."""
    answers = ["1 RUNNING", "", "1 PENDING", "1 RUNNING", "", "fails", "", "1 RUNNING"]
    for number, answer in enumerate(answers):
        (tmp_path / f"answer{number}").write_text(answer)
    count = tmp_path / "count"
    count.write_text("0")
    program(
        programs,
        "squeue",
        f"""n=$(cat {count}); echo $((n + 1)) > {count}
      answer=$(cat {tmp_path}/answer$n)
      [ "$answer" = fails ] && exit 1
      [ -z "$answer" ] || echo "$answer" """,
    )
    monkeypatch.setattr(queue, "POLL_S", (0.001, 0.001))
    wait_for_end(["1"])
    assert count.read_text() == "7\n"


def test_a_task_without_a_record_has_failed_for_the_reason_that_its_log_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done, raised, killed, cancelled = (run_task(number) for number in range(4))
    orphan, filler = run_task(5, "activations/b-0"), extract_task("activations/b-0")
    (done.results[0]).mkdir(parents=True)
    (done.results[0] / "record.json").write_text("{}")
    jobs = {done: "1_0", raised: "1_0", killed: "1_1", cancelled: "1_2", filler: "2", orphan: "3"}
    for task, job in jobs.items():
        task.job, task.log = job, str(tmp_path / f"{job}.err")
    (tmp_path / "1_0.err").write_text(
        f"{DONE}runs/a/0/x\nTraceback\n{FAILED}runs/a/1/x: no such data\nsrun: error: node1: task 0: Exited\n"
    )
    (tmp_path / "1_1.err").write_text("step 3\nslurmstepd: error: Detected 1 oom_kill event\nsrun: error: Killed\n\n")
    (tmp_path / "2.err").write_text(f"{FAILED}activations/b-0: the disk is too small\n")
    assert failures([*jobs]) == {
        raised: f"no such data (see {tmp_path}/1_0.err)",
        killed: f"slurmstepd: error: Detected 1 oom_kill event (see {tmp_path}/1_1.err)",
        cancelled: "it never began: cancelled, or its extraction was",
        orphan: f"no activations: the disk is too small (see {tmp_path}/2.err)",
    }


def test_activations_go_to_scratch_unless_there_are_some_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    for _ in range(2):
        keep_activations_in("$PLACE/scratch", tmp_path / "results")
    (tmp_path / "results" / "activations" / "x").write_text("there")
    assert (tmp_path / "scratch" / "activations" / "x").read_text() == "there"
    (tmp_path / "old" / "activations").mkdir(parents=True)
    keep_activations_in("$PLACE/scratch", tmp_path / "old")
    assert not (tmp_path / "old" / "activations").is_symlink()


def test_sbatch_does_not_inherit_what_slurm_has_set_for_an_interactive_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "2", "SLURM_CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(key, value)
    with outside_of_jobs():
        assert "SLURM_MEM_PER_CPU" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm.conf"
    assert os.environ["SLURM_MEM_PER_CPU"] == "2"


def test_the_tasks_of_an_array_in_short() -> None:
    assert format_array(["12"]) == "12"
    assert format_array(["12_0", "12_1", "12_2"]) == "12_[0-2]"


def test_slurm_by_name_where_there_is_none_and_a_dry_run_without_a_sweep_are_refused(
    here: Run, programs: Path, tmp_path: Path
) -> None:
    arguments = ("model=synthetic/sparse", "train=none", "tracker=none")
    done = here("sae_outliers.run", "-m", *arguments, "hydra/launcher=slurm")
    assert done.returncode == 1
    assert "hydra/launcher=slurm: there is no sbatch on the path; dry_run=true needs none" in done.stdout + done.stderr
    alone = here("sae_outliers.run", *arguments, "dry_run=true")
    assert alone.returncode == 1
    assert "dry_run=true plans a sweep: add -m" in alone.stderr + alone.stdout
    assert not (tmp_path / "runs").exists()
