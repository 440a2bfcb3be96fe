"""Records on disk: `results/runs/<model>/<layer>/<run id>/record.json`, one flat row.

`runs.record` has the columns and how they are measured. Reading needs neither: a record may have been written by
an earlier version, with fewer columns, or by a later one, with more.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sae_outliers.results.settings import settings_of
from sae_outliers.utils.files import write_json

SCHEMA_VERSION = 2  # raised whenever a column changes its meaning


def write_row(directory: Path, row: dict[str, Any]) -> None:
    write_json(directory / "record.json", row)


def read_row(directory: Path) -> dict[str, Any]:
    """Return the record of a finished run, brought up to date.

    Raises:
        ValueError: it is not valid JSON (the path is named).
    """
    path = directory / "record.json"
    try:
        row: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run its job again") from error
    return upgrade(row, directory)


def upgrade(row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a row of an earlier version with what later ones added and its run's files still tell.

    Version 0.1 kept the settings in config.yaml only.
    """
    if "settings" in row:
        return row
    try:
        config = yaml.load((directory / "config.yaml").read_text(), yaml.CSafeLoader)
    except OSError:
        return row | {"settings": None}
    return row | {"settings": settings_of(config)}


def read_records(results_dir: Path) -> pd.DataFrame:
    """Return all records below `results_dir`, a row each, with their directory as `run_dir`; by model and layer.

    Raises:
        ValueError: a record is not valid JSON (the path is named).
    """
    directories = [path.parent for path in sorted((results_dir / "runs").glob("*/*/*/record.json"))]
    frame = pd.DataFrame([read_row(directory) | {"run_dir": str(directory)} for directory in directories])
    return frame if frame.empty else frame.sort_values(["model", "layer", "centering"], ignore_index=True)
