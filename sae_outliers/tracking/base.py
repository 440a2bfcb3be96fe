"""Trackers mirror a run's curves elsewhere. One is a class in a module of this folder, with a yaml in conf/tracker/."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sae_outliers.config import RunConfig
from sae_outliers.results.curves import Point
from sae_outliers.utils.registry import Registry


class Tracker(ABC):
    """One run as it is tracked: the whole config goes there for the record, under our own run id.

    Attributes:
        libraries: modules that a tracker imports when it starts; a sweep in local processes imports them once for all.
    """

    libraries: Sequence[str] = ()

    @abstractmethod
    def __init__(self, cfg: RunConfig, layer: int, run_id: str) -> None: ...

    @abstractmethod
    def log(self, point: Point) -> None:
        """Mirror a point of the curves; a resumed run mirrors points again that it had mirrored before."""

    @abstractmethod
    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Mirror figures of the record, and close; `exit_code` is above 0 where the run failed."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "sae_outliers.tracking")


@TRACKERS.register("none")
class NoTracker(Tracker):
    def __init__(self, *_: Any) -> None: ...

    def log(self, point: Point) -> None: ...

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None: ...


def start_tracker(cfg: RunConfig, layer: int, run_id: str) -> Tracker:
    """Start the tracker that the config names. Raises ValueError for an unknown name."""
    return TRACKERS[cfg.tracker.name](cfg, layer, run_id)
