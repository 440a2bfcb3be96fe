"""launch/cluster/up.sh and down.sh: started twice, found again after crashes, stopped whatever is left."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import wait_for

SCRIPTS = ROOT / "launch" / "cluster"
OTHERS_ID = 65534  # nobody
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def script(name: str, root: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CLUSTER_ROOT": str(root), "CLUSTER_PORT": "17817", "CLUSTER_NODES": "2"} | settings
    return subprocess.run([SCRIPTS / name], env=environment, capture_output=True, text=True, timeout=400)


def processes(root: Path) -> dict[int, str]:
    """Processes that have a file below `root` open or come from its jobs, and their programs' names."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            is_job = f"SLURM_CONF={root}/" in (process / "environ").read_text(errors="replace")
            if is_job or any(link.startswith(f"{root}/") for link in links):
                found[int(process.name)] = (process / "comm").read_text().strip()
        except OSError:
            continue
    return found


def on(root: Path, *command: str) -> str:
    environment = os.environ | {"SLURM_CONF": str(root / "etc" / "slurm.conf")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def kill_all(root: Path, *programs: str) -> None:
    for pid, program in processes(root).items():
        if program in programs:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def second() -> Iterator[Path]:
    """A place for a cluster beside the one that the other tests use; a socket's path must be short."""
    root = Path(tempfile.mkdtemp(prefix="second"))
    yield root
    script("down.sh", root)
    shutil.rmtree(root)


@pytest.mark.slurm
def test_it_gives_jobs_gpus_and_a_second_start_changes_nothing_but_starts_what_was_killed(second: Path) -> None:
    assert script("up.sh", second).returncode == 0
    seen = on(second, "srun", "--nodes=1", "--ntasks=2", "--gpus-per-task=1", "printenv", "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.split()) == ["0", "1"]
    wait_for(lambda: "COMPLETED" in on(second, "sacct", "-nPX", "-o", "State"), "accounting")
    assert "gres/gpu=2" in on(second, "sacct", "-nPX", "-o", "AllocTRES")

    before = processes(second)
    assert sorted(before.values()).count("slurmd") == 2
    again = script("up.sh", second)
    assert again.returncode == 0, again.stderr
    assert processes(second) == before
    other = script("up.sh", second, CLUSTER_NODES="3")
    assert other.returncode == 1
    assert "a cluster with other CLUSTER_ settings runs" in other.stderr

    kill_all(second, "slurmd", "slurmctld")
    mended = script("up.sh", second)
    assert mended.returncode == 0, mended.stderr
    assert sorted(processes(second).values()) == sorted(before.values())
    wait_for(lambda: on(second, "sinfo", "-h", "-p", "main", "-o", "%D %t").split() == ["2", "idle"], "idle nodes")


@pytest.mark.slurm
@pytest.mark.parametrize("crashed", [("slurmctld",), ("slurmd", "slurmstepd", "munged", "mariadbd")])
def test_nothing_is_left_after_a_stop_whatever_crashed_before(crashed: tuple[str, ...], second: Path) -> None:
    assert script("up.sh", second).returncode == 0
    on(second, "sbatch", "--gres=gpu:1", "--output=/dev/null", "--wrap=exec sleep 1000")
    wait_for(lambda: "sleep" in processes(second).values(), "the job")
    kill_all(second, *crashed)
    done = script("down.sh", second)
    assert done.returncode == 0, done.stderr
    assert processes(second) == {}
    assert [path.name for path in second.iterdir()] == ["log"]


@needs_root
def test_a_folder_with_other_files_is_not_taken_and_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    refused = script("up.sh", tmp_path)
    assert refused.returncode == 1
    assert f"{tmp_path} holds other files" in refused.stderr
    assert "no cluster in" in script("down.sh", tmp_path).stdout
    assert (tmp_path / "etc").is_dir()


@needs_root
def test_a_folder_that_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, OTHERS_ID, OTHERS_ID)
    refused = script("up.sh", tmp_path)
    assert refused.returncode == 1
    assert "belongs to somebody else" in refused.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_without_root_both_say_so() -> None:
    as_other = ["setpriv", f"--reuid={OTHERS_ID}"] if os.geteuid() == 0 else []
    common = (SCRIPTS / "common.sh").read_text()  # by standard input: a checkout below /root is not readable to others
    called = subprocess.run([*as_other, "bash"], input=common, cwd="/", capture_output=True, text=True)
    assert called.returncode == 1
    assert "needs root" in called.stderr
