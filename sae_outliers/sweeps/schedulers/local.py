"""Local processes: the tasks of a plan on this machine, each in a process of its own, a few at a time.

Processes are forked from a server that has imported the libraries once, so a task starts in a fraction of a second,
and one that is killed takes nothing else with it. A task's output goes to `output.log` in its folder of the sweep.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from omegaconf import open_dict

from sae_outliers.sweeps.live import Live
from sae_outliers.sweeps.order import Order
from sae_outliers.sweeps.scheduler import SCHEDULERS, HydraSweep, InFlight, Queue
from sae_outliers.sweeps.task import Task
from sae_outliers.tracking.base import TRACKERS
from sae_outliers.utils.boundary import sentence_of
from sae_outliers.utils.cores import usable_cores
from sae_outliers.utils.progress import Progress

if TYPE_CHECKING:
    from sae_outliers.config import RunConfig
    from sae_outliers.sweeps.plan import Plan

NO_ACTIVATIONS = "no activations: "
MAX_ERROR_CHARACTERS = 2000  # of an error that goes through the pipe, whose buffer must hold them all

# imported once, by the process that jobs are forked from; pandas writes the files at their end
PRELOADED = ["sae_outliers.run", "sae_outliers.runs.execute", "pandas", "pyarrow.parquet"]

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]  # overrides of jobs, the number of the first


@SCHEDULERS.register("local")
class LocalScheduler:
    """Runs a plan in local processes, or by the `launch` of one of Hydra's launchers, which returns at the end."""

    detached = False
    after_interrupt = "the same command goes on from there"

    def __init__(self, sweep: HydraSweep, launch: Launch | None = None) -> None:
        self.folder = sweep.folder.absolute()
        self.sweep, self.launch = sweep, launch

    @staticmethod
    def queue() -> Queue:
        """Return no jobs: whether a task runs is known from its lock."""
        return {}

    def preview(self, planned: "Plan", cfg: "RunConfig") -> list[str]:
        return []

    def submit(self, planned: "Plan", cfg: "RunConfig", others: InFlight, save: Callable[[], None]) -> dict[Task, str]:
        """Note where each task will log to; `wait` runs them."""
        self.save = save
        self._number(planned.tasks)
        return {}

    def wait(self, planned: "Plan") -> dict[Task, str]:
        if self.launch is not None:
            return self._in_two_phases(planned, self.launch)
        reasons = LocalProcesses(self.sweep).run(planned.tasks) if planned.tasks else []
        return _failures(planned.jobs, reasons[len(planned.extractions) :])

    def _number(self, tasks: Sequence[Task]) -> None:
        """A task's log is in the folder of its number."""
        for number, task in enumerate(tasks):
            task.log = str(self.folder / str(number) / "output.log")
        self.save()

    def _in_two_phases(self, planned: "Plan", launch: Launch) -> dict[Task, str]:
        """Launch extractions, then the jobs whose activations are there: a launcher returns when all have ended."""
        lacking = {task.store: reason for task, reason in _launched(launch, planned.extractions, 0).items()}
        failures = {task: NO_ACTIVATIONS + lacking[task.store] for task in planned.jobs if task.store in lacking}
        ready = [task for task in planned.jobs if task.store not in lacking]
        if failures:  # the numbers, and with them the logs, of those that do run are now others
            self._number([*planned.extractions, *ready, *failures])
        return failures | _launched(launch, ready, len(planned.extractions))


def _launched(launch: Launch, tasks: Sequence[Task], first: int) -> dict[Task, str]:
    """Launch tasks, numbered from `first` on; return the ones that failed, and why."""
    try:
        returns = launch([list(task.overrides) for task in tasks], first) if tasks else []
        reasons = list(map(_reason, returns))
    except Exception as error:  # Submitit's launcher gives up at the first job that was killed
        reasons = ["" if task.is_done() else f"the launcher gave up: {sentence_of(error)}" for task in tasks]
    return _failures(tasks, reasons)


def _failures(tasks: Sequence[Task], reasons: Sequence[str]) -> dict[Task, str]:
    """Return the tasks that failed, and why. A launcher's word is not enough: SLURM calls Python's errors completed."""
    told = zip(tasks, reasons, strict=True)
    return {task: reason or "it left no record" for task, reason in told if reason or not task.is_done()}


def _reason(returned: JobReturn) -> str:
    """Return why a job failed, in one line; empty if it did not."""
    if returned.status == JobStatus.COMPLETED:
        return ""
    try:
        returned.return_value  # noqa: B018 - a failed job's value is raised when it is read
    except Exception as error:
        return sentence_of(error)
    return "unknown"


@dataclass
class Running:
    index: int
    slot: int  # which of the workers it is, and with that which GPU it has
    process: BaseProcess
    result: Connection


class LocalProcesses:
    """A pool of processes, one for each worker of `hydra.launcher.n_workers`."""

    def __init__(self, sweep: HydraSweep) -> None:
        self.sweep = sweep
        self.n_workers: int | None = sweep.config.hydra.launcher.get("n_workers")

    def run(self, tasks: Sequence[Task]) -> list[str]:
        """Run all tasks, and say what there is to say as they end; return why each failed, '' where it did not.

        A failed one does not stop the others. Ctrl-C stops those that run, then this process.
        """
        hydra = self.sweep.config.hydra
        setup_globals()
        configure_log(hydra.hydra_logging, hydra.verbose)
        jobs = sum(task.kind == "run" for task in tasks)  # an extraction is beside the jobs of others only
        workers = min(self.n_workers or default_workers(), jobs)
        print(f"{len(tasks)} task(s) in {workers} local process(es) at a time", flush=True)
        order, live = Order(tasks), Live(tasks)
        running: list[Running] = []
        reasons: dict[int, str] = {}
        try:
            with Progress("sweep", len(tasks), "tasks") as progress:
                while len(reasons) < len(tasks):
                    for slot in sorted(set(range(workers)) - {r.slot for r in running}):
                        others = [r.index for r in running]
                        if (index := order.take(others)) is not None:
                            threads = threads_each(min(workers, order.at_once(index, others)))
                            running.append(self._start(index, slot, threads, tasks[index]))
                    connection.wait([r.process.sentinel for r in running], timeout=1.0)
                    for done in [r for r in running if not r.process.is_alive()]:
                        running.remove(done)
                        reason = _error(done)
                        lost = order.ended(done.index, failed=bool(reason))
                        reasons |= {done.index: reason} | dict.fromkeys(lost, NO_ACTIVATIONS + reason)
                        for index in (done.index, *lost):
                            progress.say(live.ended(index))
                    failed = sum(map(bool, reasons.values()))
                    left = live.time_left(progress.seconds, [r.index for r in running])
                    notes = (f"{failed} failed" if failed else "", left)
                    progress.update(len(reasons), ", ".join(filter(None, notes)))
        finally:
            for r in running:
                r.process.terminate()
        return [reasons[i] for i in range(len(tasks))]

    def _start(self, index: int, slot: int, threads: int, task: Task) -> Running:
        context = get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, *TRACKERS[self.sweep.config.tracker.name].libraries])
        receiver, sender = context.Pipe(duplex=False)
        job = self._pickled(list(task.overrides), index)
        with _not_main():
            process = context.Process(target=_run, args=(job, slot, threads, sender), daemon=True)
            process.start()
        sender.close()
        return Running(index, slot, process, receiver)

    def _pickled(self, overrides: list[str], number: int) -> bytes:
        """Return all that a child needs to run job `number`."""
        context = self.sweep.hydra_context
        config = context.config_loader.load_sweep_config(self.sweep.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return cloudpickle.dumps((context, self.sweep.task_function, config, Singleton.get_state()))


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


def threads_each(processes: int) -> int:
    """Return torch's threads in each of so many processes: a share of the cores, or OMP_NUM_THREADS if that is less."""
    import torch

    return min(max(1, usable_cores() // processes), torch.get_num_threads())


def default_workers() -> int:
    import torch

    return torch.cuda.device_count() or usable_cores()


def _error(done: Running) -> str:
    """Return the error text of a process that has ended."""
    done.process.join()
    try:
        return done.result.recv()
    except EOFError:  # it was killed before it could send anything
        return f"its process ended with exit code {done.process.exitcode}"


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
    result.send(f"{sentence_of(error)[:MAX_ERROR_CHARACTERS]} (see {log})")


def _redirect_output(log: Path) -> None:
    """Redirect the file descriptors, since libraries and a crashing interpreter do not write through Python."""
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
    """End this process when the sweep's ends, so that a killed sweep leaves no jobs behind."""
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
