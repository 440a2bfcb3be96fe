"""Curves: `metrics.jsonl` in the run's folder is the truth, the tracker its mirror."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sae_outliers.utils.files import atomic_write, digest

if TYPE_CHECKING:
    import pandas as pd

Point = dict[str, float | int | None]


class MetricsFile:
    """One JSON object a line, in the order of the steps; `mirror` is shown each new point."""

    def __init__(self, path: Path, mirror: Callable[[Point], None]) -> None:
        self.path, self._mirror = path, mirror

    def write(self, point: Point) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(point, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that is on the disk goes with the points before it
        self._mirror(point)

    def points(self) -> list[Point]:
        """All whole lines; a line that a killed process left unfinished is not one.

        Raises:
            ValueError: a line is no point (the path is named).
        """
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text().splitlines(keepends=True)
            points = [json.loads(line) for line in lines if line.endswith("\n")]
            return [{**point, "step": int(point["step"])} for point in points]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path} is damaged ({type(error).__name__}: {error})") from error

    def digest_before(self, step: int) -> str:
        """Return a digest of the points before `step`, by which a checkpoint of this step knows them."""
        return digest([point for point in self.points() if (point["step"] or 0) < step], 64)

    def forget(self) -> None:
        """Begin anew: the next point will be the first."""
        self.path.unlink(missing_ok=True)

    def drop_from(self, step: int) -> None:
        """Forget the points at `step` and after: a resumed run writes them again. The mirror is shown the others.

        For W&B's offline file of a killed process may be empty; that of its successor has the whole curve.
        """
        kept = [point for point in self.points() if (point["step"] or 0) < step]
        with atomic_write(self.path) as beside:
            beside.write_text("".join(json.dumps(point) + "\n" for point in kept))
        for point in kept:
            self._mirror(point)

    def curves(self) -> "pd.DataFrame":
        """The points as float columns (NaN: not measured), except `step` and `tokens`."""
        import pandas as pd  # 0.4 s, which a run does not wait for before it trains

        return pd.DataFrame(self.points()).astype(float).astype({"step": int, "tokens": int})
