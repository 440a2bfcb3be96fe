"""How far a task is and how fast it goes, from the progress lines in its log.

A line says how much is done and how many seconds after its loop began; that is a better clock than the times of files,
which do not tell where a run resumed. Between lines, metrics.jsonl says how many steps are done.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from sae_outliers.utils.files import read_regular

PROGRESS_LINE = re.compile(r"(?P<title>.+): (?P<done>\d+)/(?P<total>\d+) (?:steps|tokens), (?P<seconds>\d+) s")
TAIL_BYTES = 1 << 16  # some hundred lines


@dataclass(frozen=True)
class Throughput:
    """How far a run or an extraction is, and how fast it goes.

    Attributes:
        done: steps of a run, tokens of an extraction.
        total: likewise; 0 where it is not known yet, or nothing is trained.
        tokens: tokens in a step; 1 in an extraction.
        per_second: tokens per second; None before two lines have been written.
    """

    done: int = 0
    total: int = 0
    tokens: float = 0.0
    per_second: float | None = None

    @property
    def left(self) -> float:
        """Return the tokens that are still to come."""
        return max(self.total - self.done, 0) * self.tokens


def run_throughput(directory: Path, log: str | None) -> Throughput:
    """Return the throughput of a training run; `log` is its task's."""
    point = _last_point(directory / "metrics.jsonl")
    model, layer = directory.parents[1].name, directory.parent.name
    done, total, rate = _progress(log, f"{model} layer {layer}: ")
    step = max(done, point["step"])
    tokens = point["tokens"] / point["step"] if point["step"] else 0.0
    return Throughput(step, total or _steps(directory), tokens, rate * tokens if rate and tokens else None)


def extraction_throughput(model: str, log: str | None) -> Throughput:
    done, total, rate = _progress(log, f"{model}: activations of ")
    return Throughput(done, total, 1.0, rate)


def last_line(log: str | None) -> str:
    """Return the last line of a log that is not blank; empty if there is no log."""
    lines = [line.strip() for line in _tail(log)]
    return next((line for line in reversed(lines) if line), "")


def _progress(log: str | None, title: str) -> tuple[int, int, float | None]:
    """Return done, total and units per second of the loop under this title; zeros before its first line."""
    lines = [found for line in _tail(log) if (found := PROGRESS_LINE.match(line)) and found["title"].startswith(title)]
    if not lines:
        return 0, 0, None
    first = last = lines[-1]
    for line in reversed(lines[:-1]):  # as far back as it is the same loop of the same process
        if line["title"] != last["title"] or int(line["seconds"]) >= int(first["seconds"]):
            break
        first = line
    done, total = int(last["done"]), int(last["total"])
    seconds = int(last["seconds"]) - int(first["seconds"])
    return done, total, (done - int(first["done"])) / seconds if seconds else None


def _last_point(path: Path) -> dict[str, int]:
    """Return the last complete line of metrics.jsonl."""
    lines = [line for line in _tail(str(path)) if line.endswith("}")]
    try:
        point = json.loads(lines[-1]) if lines else {}
        return {name: int(point[name]) for name in ("step", "tokens")}
    except (ValueError, KeyError, TypeError):
        return {"step": 0, "tokens": 0}


def _tail(path: str | None) -> list[str]:
    try:
        # a pipe would block its reader
        with open(path or "", "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    except OSError:
        return []


def _steps(directory: Path) -> int:
    try:
        return int(yaml.load(read_regular(directory / "config.yaml"), yaml.CSafeLoader)["train"]["steps"])
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError):  # it is just beginning, or the file is damaged
        return 0


def seconds_left(running: Iterable[Throughput], waiting: int) -> float | None:
    """Return the seconds until all are done, if as many run at a time as now and the `waiting` are as long as these.

    None where this cannot be known: nothing runs, or the speed of nothing is known yet.
    """
    known = [one for one in running if one.per_second]
    if not known:
        return None
    mean = sum(one.total * one.tokens for one in known) / len(known)
    left = sum(one.left for one in known) + waiting * mean
    return left / sum(one.per_second or 0.0 for one in known)
