"""Seconds of several cases, in interleaved rounds: what slows the machine for a while then slows all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

Case = Callable[[], object]


class Timing(NamedTuple):
    """Over the rounds, in seconds."""

    median: float
    fastest: float
    slowest: float

    def columns(self) -> dict[str, float]:
        """By their names in the tables."""
        return {"seconds": self.median, "seconds_min": self.fastest, "seconds_max": self.slowest}


def interleaved(
    cases: Mapping[str, Case], rounds: int, device: torch.device, at_least_s: float = 0
) -> dict[str, Timing]:
    """Every round runs each case once, and each begins with another case. Warming up is left to the caller.

    Short cases have more rounds, until `at_least_s` seconds are over, so that a moment of the machine does not decide.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    start = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - start < at_least_s:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(cases[name], device))
        done += 1
    return {name: Timing(median(times), min(times), max(times)) for name, times in seconds.items()}


def seconds_of(case: Case, device: torch.device) -> float:
    finish(device)
    start = time.perf_counter()
    case()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
