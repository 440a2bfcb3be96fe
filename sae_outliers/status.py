"""python -m sae_outliers.status (make status): what is done, running, queued, failed and missing, by model.

    python -m sae_outliers.status results_dir=results
    python -m sae_outliers.status watch=5      # again every 5 seconds
    python -m sae_outliers.status retry=true   # run the commands again that have failed or missing runs (make retry)

sweeps/state.py says what the states mean, sweeps/throughput.py where speed and time left come from.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tabulate import tabulate

from sae_outliers.sweeps.manifest import Manifest, read_manifests
from sae_outliers.sweeps.state import STATES, RunState, Sweeps
from sae_outliers.sweeps.task import Task
from sae_outliers.sweeps.throughput import (
    Throughput,
    extraction_throughput,
    last_line,
    run_throughput,
    seconds_left,
)
from sae_outliers.sweeps.trusted import check_command
from sae_outliers.utils.boundary import one_sentence, shows_help, visible
from sae_outliers.utils.instantiate import ONLY_NAMED
from sae_outliers.utils.progress import duration

CLEAR_SCREEN = "\x1b[H\x1b[2J"


@dataclass
class StatusConfig:
    results_dir: str = "results"
    watch: float | None = None  # seconds between two looks; null: one look
    retry: bool = False
    trust_remote_code: bool = False  # retry: let commands run the code of a model's hub repository


def main(arguments: Sequence[str]) -> None:
    if shows_help(arguments, __doc__):
        return
    config: Any = OmegaConf.merge(OmegaConf.structured(StatusConfig), OmegaConf.from_cli(list(arguments)))
    results_dir = Path(config.results_dir)
    if config.retry:
        sys.exit(retry(results_dir, config.trust_remote_code))
    try:
        print(visible(status(results_dir)), end="", flush=True)
        while config.watch is not None:
            time.sleep(config.watch)
            text = visible(status(results_dir))
            print(CLEAR_SCREEN if sys.stdout.isatty() else "\n", text, sep="", end="", flush=True)
    except KeyboardInterrupt:  # nothing is left to go on with
        sys.exit(130)


# --- the table ------------------------------------------------------------------------------------------


def status(results_dir: Path) -> str:
    """Return the table, failed tasks and running ones, as plain text.

    Raises:
        ValueError: a manifest cannot be read.
    """
    sweeps = Sweeps(results_dir, read_manifests(results_dir))
    runs = sweeps.runs()
    if not runs:
        return f"{results_dir}: no runs and no sweeps yet\n"
    speeds = {run.directory: run_throughput(run.directory, _log(run)) for run in runs if run.state == "running"}
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    parts = [f"{results_dir}: {len(sweeps.manifests)} sweep(s), {len(runs)} run(s), {now}\n"]
    if sweeps.is_unsure():
        parts.append(f"{sweeps.no_answer}: jobs that have no record and hold no lock are counted as failed\n")
    parts.append(_table(runs, speeds) + "\n")
    parts += _listed("failed", _failures(runs, sweeps))
    parts += _listed("running", [*map(_extraction_line, sweeps.extractions()), *_running_lines(runs, speeds)])
    return "\n".join(parts)


def _table(runs: Sequence[RunState], speeds: dict[Path, Throughput]) -> str:
    models = sorted({run.model for run in runs})
    rows = [_row(model, [run for run in runs if run.model == model], speeds) for model in models]
    rows.append(_row("total", runs, speeds))
    return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True, colalign=_ALIGN)


_ALIGN = ("left", *("right",) * (len(STATES) + 3))


def _row(model: str, runs: Sequence[RunState], speeds: dict[Path, Throughput]) -> dict[str, str]:
    counts = Counter(run.state for run in runs)
    mine = [speeds[run.directory] for run in runs if run.directory in speeds]
    speed = sum(one.per_second or 0.0 for one in mine)
    return {
        "model": model,
        "runs": str(len(runs)),
        **{state: str(counts[state]) for state in STATES},
        "tokens/s": f"{speed:.0f}" if speed else "",
        "time left": duration(seconds_left(mine, counts["queued"])),
    }


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return [f"{title}:", *(f"  {line}" for line in lines), ""] if lines else []


def _log(run: RunState) -> str | None:
    return run.task.log if run.task else None


def _failures(runs: Sequence[RunState], sweeps: Sweeps) -> list[str]:
    """Return two lines for each task that has a failed run: its last line of output, and where that is."""
    failed = {id(run.task): run.task for run in runs if run.state == "failed" and run.task}
    return [line for task in failed.values() for line in _failure(task, sweeps)]


def _failure(task: Task, sweeps: Sweeps) -> tuple[str, str]:
    if last := last_line(task.log):
        return f"{task.name}: {last}", f"  {task.log}"
    extraction = sweeps.extraction_for(task)
    if extraction and (last := last_line(extraction.log)):
        return f"{task.name}: it wrote nothing; its activations: {last}", f"  {extraction.log}"
    return f"{task.name}: it wrote nothing", f"  {task.log or 'no log'}"


def _running_lines(runs: Sequence[RunState], speeds: dict[Path, Throughput]) -> Iterable[str]:
    for run in runs:
        if run.state == "running":
            name = run.task.name if run.task else f"{run.model} layer {run.layer}"
            yield f"{name} ({run.directory.name}): {_how_far(speeds[run.directory], 'step')}"


def _extraction_line(task: Task) -> str:
    return f"{task.name}: {_how_far(extraction_throughput(task.model, task.log), 'token')}"


def _how_far(at: Throughput, unit: str) -> str:
    if not at.total:
        return "no steps yet"
    speed = f", {at.per_second:.0f} tokens/s, {duration(seconds_left([at], 0))} left" if at.per_second else ""
    return f"{unit} {at.done} of {at.total}{speed}"


# --- retry -----------------------------------------------------------------------------------------------


def retry(results_dir: Path, trust_remote_code: bool = False) -> int:
    """Run each command again of which a run has failed or is missing, the newest first; return the worst exit status.

    The sweeper leaves out what is finished, and runs' locks keep two sweeps from the same run.

    Raises:
        ValueError: a scheduler that has been given jobs does not say which of them are still in its queue; or a command
            does what a manifest may not (`sweeps.trusted`).
    """
    sweeps = Sweeps(results_dir, read_manifests(results_dir))
    if sweeps.is_unsure():
        raise ValueError(f"{sweeps.no_answer}, so nobody knows which jobs have failed: try again when it does")
    commands = to_retry(sweeps)
    if not commands:
        print(f"{results_dir}: nothing has failed, and nothing is missing")
    for command in commands:
        check_command(command, trust_remote_code)
    statuses = [_run_again(command, results_dir) for command in commands]
    return max(statuses, default=0)


def to_retry(sweeps: Sweeps) -> list[list[str]]:
    """Return the commands with failed or missing runs, each once, in the order of its newest manifest."""
    lacking = {id(run.task) for run in sweeps.runs() if run.state in ("failed", "missing")}

    def lacks(manifest: Manifest) -> bool:
        return any(id(task) in lacking for task in manifest.tasks)

    wanted = {tuple(manifest.command) for manifest in sweeps.manifests if lacks(manifest)}
    in_order = dict.fromkeys(tuple(manifest.command) for manifest in sweeps.manifests)
    return [list(command) for command in in_order if command in wanted]


def _run_again(command: Sequence[str], results_dir: Path) -> int:
    """Run it on these results, whatever folder the command was given from; it names no code but that of configs."""
    rest = [argument for argument in command if not argument.startswith("results_dir=")]
    again = [sys.executable, "-m", "sae_outliers.run", "-m", *rest, f"results_dir={results_dir}"]
    print(visible(" ".join(["running again:", *again[1:]])), flush=True)
    return abs(subprocess.run(again, env=os.environ | {ONLY_NAMED: "1"}).returncode)


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
