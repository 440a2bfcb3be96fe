"""Records on disk: `results/runs/<model>/<layer>/<run id>/record.json`, one flat row.

`runs.record` has the columns and how they are measured. Reading needs neither: a record may have been written by
an earlier version, with fewer columns, or by a later one, with more.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sae_outliers.results.integrity import DIGESTS, VERIFIED, damaged, own_digest, read_if_whole, read_whole, verified
from sae_outliers.results.settings import settings_of
from sae_outliers.utils.files import file_digest, sync, write_json

SCHEMA_VERSION = 2  # raised whenever a column changes its meaning


def write_row(directory: Path, row: dict[str, Any]) -> None:
    """Write the record, with the digests of the files beside it; the run is then on the disk, its folders included."""
    found = {name: file_digest(directory / name) for name in VERIFIED if (directory / name).is_file()}
    write_json(directory / "record.json", row | {DIGESTS: {"record": own_digest(row), **found}})
    for folder in directory.parents[:3]:  # layer, model, runs: the run may be the first of them
        sync(folder)


def read_row(directory: Path) -> dict[str, Any]:
    """Return the record of a finished run, brought up to date.

    Raises:
        ValueError: it is no record, or not the one that was written (the path is named).
    """
    return upgrade(read_whole(directory / "record.json"), directory)


def upgrade(row: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a row of an earlier version with what later ones added and its run's files still tell.

    Version 0.1 kept the settings in config.yaml only.
    """
    if "settings" in row:
        return row
    try:
        content = verified(directory, "config.yaml", row.get(DIGESTS))
    except FileNotFoundError:
        return row | {"settings": None}
    except OSError as error:
        raise damaged(directory / "config.yaml", error) from error
    try:
        return row | {"settings": settings_of(yaml.load(content, yaml.CSafeLoader))}
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(directory / "config.yaml", f"{type(error).__name__}: {error}") from error


def read_records(results_dir: Path) -> pd.DataFrame:
    """Return all records below `results_dir`, a row each, with their directory as `run_dir`; by model and layer.

    A record that cannot be read counts as missing; a warning names it.

    Raises:
        ValueError: the config beside a record of version 0.1 is damaged (the path is named).
    """
    found = ((path.parent, read_if_whole(path)) for path in sorted((results_dir / "runs").glob("*/*/*/record.json")))
    rows = [upgrade(row, folder) | {"run_dir": str(folder)} for folder, row in found if row is not None]
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(["model", "layer", "centering"], ignore_index=True)
