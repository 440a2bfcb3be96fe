"""Sweeps as a user types them, in the background, against the cluster that `make test-slurm` has started."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LONGEST = 900  # seconds that a sweep may take


class Sweep:
    """`python -m sae_outliers.run -m <arguments>` in a process of its own, which may still run.

    On one thread, as the cluster's jobs: with more, sums come out in another order.
    """

    def __init__(self, results_dir: Path, log: Path, arguments: tuple[str, ...]) -> None:
        self.log = log
        command = [sys.executable, "-m", "sae_outliers.run", "-m", *arguments, f"results_dir={results_dir}"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env=os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
            )

    def has_planned(self) -> bool:
        return " job(s) to run, " in self.log.read_text()

    def ended(self) -> tuple[int, str]:
        """Its status and all that it printed, once it has ended."""
        return self.process.wait(LONGEST), self.log.read_text()


Start = Callable[..., Sweep]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a sweep: `start(results_dir, *arguments)`. Those that still run at the end are stopped."""
    logs = tmp_path_factory.mktemp("logs")
    started: list[Sweep] = []

    def begin(results_dir: Path, *arguments: str) -> Sweep:
        started.append(Sweep(results_dir, logs / f"{len(started)}.log", arguments))
        return started[-1]

    yield begin
    for sweep in started:
        sweep.process.terminate()


@pytest.fixture(scope="session", autouse=True)
def cluster(request: pytest.FixtureRequest) -> None:
    """Fails at once, with the reason, where tests of the cluster run without one."""
    marked = any(item.get_closest_marker("slurm") for item in request.session.items)
    if marked and subprocess.run(["sinfo", "--noheader"], capture_output=True).returncode:
        pytest.fail("no cluster answers sinfo: call `make test-slurm`, or `make cluster-up` and export SLURM_CONF")
