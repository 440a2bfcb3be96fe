"""Hydra launcher for one machine: each job in a process of its own, a few at a time.

Processes are forked from a server that has imported the libraries once, so a job starts in a fraction of a second,
and one that is killed takes nothing else with it. A job's output goes to `output.log` in its folder of the sweep.
"""

import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.sae_outliers.local_launcher.LocalLauncher"
    n_workers: int | None = None  # jobs at a time; null: one per GPU, or one per CPU core where there is none


ConfigStore.instance().store(
    group="hydra/launcher", name="local_processes", node=LocalLauncherConfig, provider="sae_outliers"
)

LONGEST_ERROR = 2000  # characters of an error that go through the pipe, whose buffer must hold them all


class JobFailed(RuntimeError):
    """Carries a job's error text from its process."""


@dataclass
class Running:
    index: int
    slot: int  # which of the workers it is, and with that which GPU it has
    process: BaseProcess
    result: Connection


class LocalLauncher(Launcher):
    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = n_workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failed one does not stop the others. Ctrl-C stops those that run, then this process."""
        from sae_outliers.utils.progress import Progress

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        workers = min(self.n_workers or default_workers(), len(job_overrides))
        print(f"{len(job_overrides)} task(s) in {workers} local process(es) at a time", flush=True)
        waiting = list(enumerate(job_overrides))[::-1]
        running: list[Running] = []
        returns: dict[int, JobReturn] = {}
        try:
            with Progress("sweep", len(job_overrides), "tasks") as progress:
                while waiting or running:
                    for slot in sorted(set(range(workers)) - {r.slot for r in running})[: len(waiting)]:
                        index, overrides = waiting.pop()
                        job = self._pickled(list(overrides), initial_job_idx + index)
                        running.append(_start(index, slot, workers, job))
                    connection.wait([r.process.sentinel for r in running], timeout=1.0)
                    for done in [r for r in running if not r.process.is_alive()]:
                        running.remove(done)
                        returns[done.index] = _returned(done)
                    failed = sum(r.status == JobStatus.FAILED for r in returns.values())
                    progress.update(len(returns), f"{failed} failed" if failed else "")
        finally:
            for r in running:
                r.process.terminate()
        return [returns[i] for i in range(len(job_overrides))]

    def _pickled(self, overrides: list[str], number: int) -> bytes:
        """All that a child needs to run job `number`."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return cloudpickle.dumps((self.hydra_context, self.task_function, config, Singleton.get_state()))


def _start(index: int, slot: int, workers: int, job: bytes) -> Running:
    context = get_context("forkserver")
    context.set_forkserver_preload(["sae_outliers.runs.layer", "sae_outliers.run"])
    receiver, sender = context.Pipe(duplex=False)
    threads = threads_each(workers)
    with _not_main():
        process = context.Process(target=_run, args=(job, slot, threads, sender), daemon=True)
        process.start()
    sender.close()
    return Running(index, slot, process, receiver)


@contextmanager
def _not_main() -> Any:
    """Keep the child from importing this process's __main__ a second time: all that it runs comes in the pickle."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


def threads_each(workers: int) -> int:
    """Of torch in each of so many processes: its share of the cores, or OMP_NUM_THREADS where that is less."""
    import torch

    return min(max(1, (os.cpu_count() or 1) // workers), torch.get_num_threads())


def default_workers() -> int:
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1


def _returned(done: Running) -> JobReturn:
    done.process.join()
    returned = JobReturn()
    try:
        error = done.result.recv()
    except EOFError:  # it was killed before it could send anything
        error = f"its process ended with exit code {done.process.exitcode}"
    returned.status = JobStatus.FAILED if error else JobStatus.COMPLETED
    returned.return_value = JobFailed(error) if error else None
    return returned


def _run(pickled: bytes, slot: int, threads: int, result: Connection) -> None:
    """In the child: run the job with its output in a file, and send its error text back ('' for none)."""
    _die_with_parent()
    context, task_function, config, singletons = cloudpickle.loads(pickled)
    setup_globals()
    Singleton.set_state(singletons)
    log = Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir) / "output.log"
    _redirect_output(log)
    _take_resources(slot, threads)
    returned = run_job(
        hydra_context=context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if returned.status == JobStatus.COMPLETED:
        result.send("")
        return
    error = returned._return_value
    traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    result.send(f"{text[:LONGEST_ERROR]} (see {log})")


def _redirect_output(log: Path) -> None:
    """Below Python too: libraries and a crashing interpreter write to the file descriptors."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())


def _take_resources(slot: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())


def _die_with_parent() -> None:
    """A killed sweep leaves no jobs behind."""
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
