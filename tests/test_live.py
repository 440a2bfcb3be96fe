"""What a sweep says while it runs, against the records that it makes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sae_outliers.results.layout import run_dir
from sae_outliers.results.record import write_row
from sae_outliers.sweeps.live import OVERHEAD, Live
from sae_outliers.sweeps.task import Cost, Task
from tests.test_status import log_of
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


def test_the_time_left_counts_what_running_tasks_have_done(tmp_path: Path) -> None:
    small, large = (measured(tmp_path, "a", layer, n * OVERHEAD, off=0.0) for layer, n in ((1, 0), (2, 999)))
    live = Live([small, large])
    list(live.ended(0))
    assert live.time_left(10.0, [1]) == ""  # a thousandth is done: that it took 10 s says nothing of the rest
    large.log = str(log_of(tmp_path, "log", "a layer 2: 5 x topk: 2500/10000 steps, 90 s"))
    assert live.time_left(100.0, [1]) == "about 5 min left"  # 250 of 1,000 are done
    assert Live([large]).time_left(100.0, []) == ""


def test_what_an_earlier_sweep_has_done_says_nothing_of_the_speed(tmp_path: Path) -> None:
    resumed = measured(tmp_path, "a", 2, 9 * OVERHEAD, off=0.0)
    live = Live([resumed])
    resumed.log = str(log_of(tmp_path, "log", "a layer 2: topk: 500/1000 steps, 0 s"))
    assert live.time_left(1.0, [0]) == ""
    resumed.log = str(log_of(tmp_path, "log", "a layer 2: topk: 750/1000 steps, 60 s"))
    assert live.time_left(60.0, [0]) == "about 60 s left"


def test_an_extraction_is_as_far_as_its_tokens(tmp_path: Path) -> None:
    extraction = Task("a activations", "extract", (), (), tmp_path / "a-0123", cost=Cost(9 * OVERHEAD))
    live = Live([extraction])
    assert live.time_left(0.0, [0]) == ""
    extraction.log = str(log_of(tmp_path, "log", "a: activations of 2 layer(s): 200/1000 tokens, 20 s"))
    assert live.time_left(20.0, [0]) == "about 80 s left"


@pytest.mark.parametrize("centering", ["on", "whiten"])
def test_a_model_without_uncentered_runs_tells_of_those_that_it_has(tmp_path: Path, centering: str) -> None:
    live = Live([measured(tmp_path, "a", layer, **{centering: float(layer)}) for layer in (1, 2)])
    list(live.ended(0))
    (line,) = live.ended(1)
    assert line == f"a, 2 layer(s): γ 1.00 to 2.00; centering={centering}: dead at initialisation by TopK at most 2.0 %"
