"""Schedulers behind their one interface: which there are, how a command names one, and the two phases of local ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus

from sae_outliers.sweeps.plan import Plan
from sae_outliers.sweeps.scheduler import SCHEDULERS, InFlight
from sae_outliers.sweeps.schedulers.local import LocalScheduler
from sae_outliers.sweeps.task import Task
from tests.conftest import CONF, Run, composed

SMALL = (
    "model=synthetic/sparse",
    "layer=1",
    "train=none",
    "tracker=none",
    "n_eval=300",
    "sae.n_features=64",
    "sae.k=8",
)


def test_each_launcher_of_conf_names_a_scheduler_that_is_registered_and_opens_with_its_command() -> None:
    paths = sorted((CONF / "hydra" / "launcher").glob("*.yaml"))
    assert [path.stem for path in paths] == ["auto", "local_processes", "slurm"]
    for path in paths:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"hydra/launcher={path.stem}"], return_hydra_config=True)
        assert config.hydra.launcher.scheduler in ("auto", *SCHEDULERS)
        assert f"hydra/launcher={path.stem}" in path.read_text().split("\n")[0]


@pytest.mark.parametrize(("arguments", "message"), [
    (["hydra.launcher.scheduler=lsf"], "hydra.launcher.scheduler=lsf does not exist: use one of local, slurm"),
    (["hydra/sweeper=basic"], "the scheduler auto takes whole plans: leave hydra/sweeper=layers as it is"),
])  # fmt: skip
def test_a_scheduler_that_is_not_there_and_a_sweeper_that_makes_no_plans_are_refused(
    arguments: list[str], message: str, here: Run, tmp_path: Path
) -> None:
    done = here("sae_outliers.run", "-m", *SMALL, *arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_hydras_own_launcher_runs_a_plan_too(here: Run, tmp_path: Path) -> None:
    done = here("sae_outliers.run", "-m", *SMALL, "hydra/launcher=basic")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 job(s) done, 0 finished before, 0 failed\n")
    assert len(list(tmp_path.glob("runs/*/*/*/record.json"))) == 1


class Launched:
    """Stands for processes: an extraction of the store `bad` fails, everything else leaves its record."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.by_overrides = {task.overrides: task for task in tasks}
        self.numbers: dict[str, int] = {}

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        returns = []
        for number, told in enumerate(overrides, first):
            task = self.by_overrides[tuple(told)]
            self.numbers[task.name] = number
            fails = task.kind == "extract" and task.store.name == "bad"
            returns.append(JobReturn(status=JobStatus.FAILED if fails else JobStatus.COMPLETED))
            returns[-1].return_value = OSError("the disk\n is full") if fails else None
            for folder in task.results:
                folder.mkdir(parents=True)
                (folder / "record.json").write_text("{}")
        return returns


class Sweep:
    def __init__(self, folder: Path) -> None:
        self.folder = folder


def test_jobs_without_activations_are_left_out_and_the_logs_of_the_others_are_where_they_write_them(
    tmp_path: Path,
) -> None:
    def task(name: str, store: str, *results: Path) -> Task:
        return Task(name, "run" if results else "extract", (name,), results, tmp_path / store)

    extractions = [task("e bad", "bad"), task("e good", "good")]
    jobs = [task("bad 1", "bad", tmp_path / "b1"), task("good 1", "good", tmp_path / "g1")]
    planned, launched, saved = Plan(extractions, jobs, 0), Launched([*extractions, *jobs]), []
    scheduler = LocalScheduler(Sweep(tmp_path), launched.launch)  # type: ignore[arg-type]
    refused = scheduler.submit(planned, composed(), InFlight(), lambda: saved.append([t.log for t in planned.tasks]))
    assert refused == {}
    assert saved == [[str(tmp_path / f"{number}/output.log") for number in range(4)]]
    assert scheduler.wait(planned) == {jobs[0]: "no activations: the disk is full"}
    assert launched.numbers == {"e bad": 0, "e good": 1, "good 1": 2}
    assert jobs[1].log == str(tmp_path / "2/output.log")
    assert saved[-1] == [task.log for task in planned.tasks]
    assert len({task.log for task in planned.tasks}) == 4
