"""The order of a sweep's tasks in local processes, followed in a naive simulation of workers."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from sae_outliers.sweeps.order import Order
from sae_outliers.sweeps.task import Cost, Task


def sweep(seconds: dict[str, float], jobs: int) -> list[Task]:
    """An extraction for each store, which takes so many seconds, and `jobs` jobs of one second on each."""
    extractions = [Task(s, "extract", (), (), Path(s), cost=Cost(operations=t)) for s, t in seconds.items()]
    return extractions + [
        Task(f"{store} {number}", "run", (), (Path(store) / str(number),), Path(store), cost=Cost(operations=1.0))
        for store in seconds
        for number in range(jobs)
    ]


def simulated(
    tasks: list[Task], workers: int, failing: str = "", shares: dict[str, Fraction] | None = None
) -> Iterator[tuple[float, str, str]]:
    """Yield (seconds, began or ended or lost, name of the task); `shares` gets each one's share of the cores."""
    order, now = Order(tasks), 0.0
    running: dict[int, float] = {}
    while True:
        while len(running) < workers and (index := order.take(running.keys())) is not None:
            if shares is not None:
                shares[tasks[index].name] = Fraction(1, min(workers, order.at_once(index, running.keys())))
            running[index] = now + tasks[index].cost.operations
            yield now, "began", tasks[index].name
        if not running:
            assert not order.waiting
            return
        index = min(running, key=running.__getitem__)
        now = running.pop(index)
        yield now, "ended", tasks[index].name
        for lost in order.ended(index, failed=tasks[index].name == failing):
            yield now, "lost", tasks[lost].name


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
def test_every_task_runs_once_and_no_job_before_its_extraction_has_ended(workers: int) -> None:
    tasks = sweep({"long": 9.0, "middle": 4.0, "short": 2.0}, jobs=5)
    events = list(simulated(tasks, workers))
    assert sorted(name for _, what, name in events if what == "began") == sorted(task.name for task in tasks)
    when = {(what, name): number for number, (_, what, name) in enumerate(events)}
    for task in tasks:
        assert when["ended", task.store.name] <= when["began", task.name] or task.kind == "extract"


def test_the_first_result_does_not_wait_for_the_other_models_and_no_worker_is_idle() -> None:
    tasks = sweep({"long": 9.0, "middle": 4.0, "short": 2.0}, jobs=5)
    events = list(simulated(tasks, 2))
    first_job = next(now for now, what, name in events if what == "ended" and " " in name)
    assert first_job == 5.0  # `middle` and one job; 10 if all were extracted before
    assert events[-1][0] == 15.0  # 15 s of extractions and 15 of jobs, in two processes


def test_jobs_of_a_failed_extraction_are_lost_and_the_others_run() -> None:
    tasks = sweep({"bad": 3.0, "good": 2.0}, jobs=2)
    events = list(simulated(tasks, 2, failing="bad"))
    assert {name for _, what, name in events if what == "lost"} == {"bad 0", "bad 1"}
    assert {name for _, what, name in events if what == "ended"} == {"bad", "good", "good 0", "good 1"}


def test_jobs_whose_activations_are_there_already_begin_at_once() -> None:
    tasks = [task for task in sweep({"stored": 1.0, "new": 3.0}, jobs=1) if task.name != "stored"]
    began = [(now, name) for now, what, name in simulated(tasks, 2) if what == "began"]
    assert began == [(0.0, "new"), (0.0, "stored 0"), (3.0, "new 0")]


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_tasks_that_run_at_a_time_never_have_more_than_all_cores(workers: int, jobs: int) -> None:
    shares: dict[str, Fraction] = {}
    taken, running = Fraction(0), 0
    for _, what, name in simulated(sweep({"long": 9.0, "middle": 4.0, "short": 2.0}, jobs), workers, shares=shares):
        taken += shares[name] if what == "began" else -shares[name]
        running += 1 if what == "began" else -1
        assert taken <= 1
        assert shares[name] <= Fraction(1, max(1, running))


def test_a_task_that_nothing_can_run_beside_has_all_cores() -> None:
    shares: dict[str, Fraction] = {}
    list(simulated(sweep({"one": 9.0}, jobs=1), 8, shares=shares))
    assert shares == {"one": 1, "one 0": 1}
    list(simulated(sweep({"one": 9.0}, jobs=3), 8, shares=shares))
    assert shares == {"one": 1, "one 0": Fraction(1, 3), "one 1": Fraction(1, 3), "one 2": Fraction(1, 3)}
