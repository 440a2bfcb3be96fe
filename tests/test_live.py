"""What a sweep says while it runs, against the records that it makes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sae_outliers.results.layout import run_dir
from sae_outliers.results.record import write_row
from sae_outliers.sweeps.live import OVERHEAD, Live
from sae_outliers.sweeps.task import Cost, Task
from tests.test_tables import make_record


def measured(results_dir: Path, model: str, layer: int, operations: float = 0.0, **by_centering: Any) -> Task:
    """A task whose runs are on disk: dead by TopK at initialisation, by centering."""
    folders = []
    for centering, dead in by_centering.items():
        ends = dict(centering=centering, gamma=float(layer), dead_pct_init_topk=dead, dead_pct_init_relu=dead / 2)
        record = make_record(model, layer, run_id=centering, **ends)
        folder = run_dir(results_dir, model, layer, centering)
        folder.mkdir(parents=True)
        write_row(folder, asdict(record))
        folders.append(folder)
    return Task(f"{model} {layer}", "run", (), tuple(folders), results_dir / "s", cost=Cost(operations))


def test_the_first_result_is_said_at_once_and_a_model_when_all_its_tasks_have_ended(tmp_path: Path) -> None:
    tasks = [measured(tmp_path, "a", layer, off=10.0 * layer, on=1.0) for layer in (1, 3, 2)]
    tasks.append(measured(tmp_path, "b", 1, off=5.0))
    live = Live(tasks)
    assert [line.split(":")[0] for line in live.ended(0)] == [
        "a layer 1, topk, revival=none, centering=off", "a layer 1, topk, revival=none, centering=on"
    ]  # fmt: skip
    assert list(live.ended(3)) == []  # a model of one layer has had its line, or has none to add
    assert list(live.ended(1)) == []
    assert list(live.ended(2)) == [
        "a, 3 layer(s): γ 1.00 to 3.00; dead at initialisation by TopK at most 30.0 %, by ReLU 15.0 %, in layer 3; "
        "centering=on: dead at initialisation by TopK at most 1.0 %"
    ]


def test_a_task_that_failed_says_nothing_and_is_no_layer(tmp_path: Path) -> None:
    failed = Task("a 3", "run", (), (run_dir(tmp_path, "a", 3, "none"),), tmp_path / "s")
    live = Live([measured(tmp_path, "a", 1, off=4.0), measured(tmp_path, "a", 2, off=2.0), failed])
    list(live.ended(0))
    assert list(live.ended(2)) == []
    (line,) = live.ended(1)
    assert line.startswith("a, 2 layer(s): γ 1.00 to 2.00")


def test_what_failed_first_is_not_the_first_result(tmp_path: Path) -> None:
    failed = Task("a 1", "run", (), (run_dir(tmp_path, "a", 1, "none"),), tmp_path / "s")
    live = Live([failed, measured(tmp_path, "b", 1, off=5.0)])
    assert list(live.ended(0)) == []
    (line,) = live.ended(1)
    assert line.startswith("b layer 1, topk")


def test_the_time_left_goes_by_the_work_that_is_left(tmp_path: Path) -> None:
    tasks = [measured(tmp_path, "a", layer, 3 * OVERHEAD * (layer - 1), off=0.0) for layer in (1, 2)]
    live = Live(tasks)
    assert live.time_left(5.0) == ""
    list(live.ended(0))
    assert live.time_left(5.0) == "about 20 s left"  # the second is four times the first
    list(live.ended(1))
    assert live.time_left(9.0) == ""


@pytest.mark.parametrize("centering", ["on", "whiten"])
def test_a_model_without_uncentered_runs_tells_of_those_that_it_has(tmp_path: Path, centering: str) -> None:
    live = Live([measured(tmp_path, "a", layer, **{centering: float(layer)}) for layer in (1, 2)])
    list(live.ended(0))
    (line,) = live.ended(1)
    assert line == f"a, 2 layer(s): γ 1.00 to 2.00; centering={centering}: dead at initialisation by TopK at most 2.0 %"
