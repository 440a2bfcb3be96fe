"""Sweeps through a real SLURM that does its worst: the same commands complete them, to what a local sweep gives."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from sae_outliers.results.record import read_records
from tests.conftest import ROOT
from tests.slurm.conftest import Start
from tests.slurm.storm import SWEEPS, Storm

pytestmark = [pytest.mark.slurm, pytest.mark.weights]
OF_THE_MACHINE = ["seconds", "peak_memory_mb", "device", "git_commit", "run_dir", "digests"]


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Storm:
    """After the first call of each sweep."""
    storm = Storm(tmp_path_factory.mktemp("results"))
    storm.blow(start)
    return storm


@pytest.fixture(scope="module")
def completed(storm: Storm, start: Start) -> dict[str, tuple[int, str]]:
    """What each command says when it is called once more, all at the same time."""
    sweeps = {name: start(storm.results_dir, *arguments) for name, arguments in SWEEPS.items()}
    return {name: sweep.ended() for name, sweep in sweeps.items()}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    """The same sweeps in local processes, which nothing befalls."""
    results_dir = tmp_path_factory.mktemp("local")
    for name, arguments in SWEEPS.items():
        status, said = start(results_dir, "hydra/launcher=local_processes", *arguments).ended()
        assert status == (name == "raising"), said
    return results_dir


def test_a_sweep_goes_to_slurm_by_itself_and_says_so(storm: Storm) -> None:
    assert all("SLURM" in said for _, said in storm.said.values())


def test_what_was_preempted_requeued_or_lost_its_node_is_done_nonetheless(storm: Storm) -> None:
    status, said = storm.said["preempted"]
    assert "1 job(s) done, 0 finished before, 0 failed" in said
    assert status == 0
    assert "2 job(s) done, 0 finished before, 1 failed" in storm.said["trained"][1]
    for name in ("preempted", "requeued", "lost"):
        assert len(storm.struck[name].runs) > 1, f"{name}: SLURM ran it once: {storm.struck[name].runs}"
    assert "NODE_FAIL" in storm.struck["lost"].runs


def test_a_preempted_job_leaves_a_checkpoint_of_its_last_step(storm: Storm) -> None:
    assert storm.struck["preempted"].step == 0
    assert storm.step_left >= 100  # the point of the curves that was waited for


def test_what_was_cancelled_or_raised_is_named_with_its_reason(storm: Storm) -> None:
    for name, why in {
        "trained": "minilm layer 4",
        "raising": "init.rank=999 exceeds d_model=128: lower it",
        "unfounded": "sapiens layer 4",
        "measured": "sapiens layer 4",
    }.items():
        status, said = storm.said[name]
        assert status == 1, name
        failed = [line for line in said.splitlines() if line.startswith("  failed: ")]
        assert len(failed) == 1, said
        assert why in failed[0]
    assert "79 job(s) done, 0 finished before, 1 failed" in storm.said["measured"][1]


def test_a_second_call_while_the_first_runs_disturbs_nothing(storm: Storm) -> None:
    for name, what in {"twice": "0 failed", "twice again": "0 failed", "measured again": "0 job(s) to run"}.items():
        status, said = storm.said[name]
        assert status == 0, said
        assert what in said


def test_status_tells_what_is_left(storm: Storm) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sae_outliers.status", f"results_dir={storm.results_dir}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    total = next(line.split() for line in done.stdout.splitlines() if line.startswith("total"))
    assert total[1:] == ["329", "322", "0", "0", "7", "0"]


def test_the_same_commands_complete_the_rest(completed: dict[str, tuple[int, str]]) -> None:
    for name, what in {
        "measured": "1 job(s) done, 79 finished before, 0 failed",
        "preempted": "0 job(s) done, 1 finished before, 0 failed",
        "trained": "1 job(s) done, 2 finished before, 0 failed",
        "twice": "0 job(s) done, 2 finished before, 0 failed",
        "unfounded": "1 job(s) done, 0 finished before, 0 failed",
    }.items():
        assert what in completed[name][1]
        assert completed[name][0] == 0
    assert "0 job(s) done, 1 finished before, 1 failed" in completed["raising"][1]


@pytest.mark.usefixtures("completed")
def test_records_and_their_aggregation_equal_those_of_a_local_sweep_cell_by_cell(storm: Storm, local: Path) -> None:
    ours, theirs = (
        read_records(folder).sort_values("run_id", ignore_index=True) for folder in (storm.results_dir, local)
    )
    assert len(ours) == 328
    pd.testing.assert_frame_equal(
        ours.drop(columns=OF_THE_MACHINE), theirs.drop(columns=OF_THE_MACHINE), check_exact=True
    )
    for folder in (storm.results_dir, local):
        command = [sys.executable, "-m", "sae_outliers.aggregate", f"results_dir={folder}", "allow_mixed=true"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    tables = [path.name for path in sorted((local / "tables").glob("*.csv"))]
    assert {"models.csv", "conditions.csv", "recovery.csv"} <= set(tables)
    for name in tables:
        assert (storm.results_dir / "tables" / name).read_text() == (local / "tables" / name).read_text(), name


@pytest.mark.usefixtures("completed")
def test_weights_curves_and_fates_are_those_of_an_undisturbed_run(storm: Storm, local: Path) -> None:
    weights = sorted(path.relative_to(local) for path in local.glob("runs/*/*/*/sae.safetensors"))
    assert len(weights) == 6
    for path in weights:
        ours, theirs = (load_file(folder / path) for folder in (storm.results_dir, local))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours), path
        for name in ("curves.parquet", "features.parquet"):
            frames = [pd.read_parquet((folder / path).with_name(name)) for folder in (storm.results_dir, local)]
            pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_the_code_that_ran_is_the_snapshot_that_was_taken_at_submission(storm: Storm) -> None:
    commits = {path.read_text().strip() for path in storm.results_dir.glob("hydra/*/code/COMMIT")}
    assert commits
    assert set(read_records(storm.results_dir)["git_commit"]) <= commits


@pytest.mark.usefixtures("completed")
def test_nothing_is_left_behind(storm: Storm) -> None:
    left = [str(path) for path in storm.results_dir.rglob("*") if "checkpoint" in path.name or path.suffix == ".tmp"]
    unfinished = {path.parent for path in storm.results_dir.glob("runs/*/*/*/config.yaml")} - {
        path.parent for path in storm.results_dir.glob("runs/*/*/*/record.json")
    }
    assert left == []
    assert len(unfinished) == 1, "only the job that raises has no record"
