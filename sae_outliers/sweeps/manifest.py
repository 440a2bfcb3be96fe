"""The manifest of a sweep: `<results_dir>/sweeps/<name>.json` lists what was launched, and where its logs are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from os.path import relpath
from pathlib import Path
from typing import Any, Literal

from sae_outliers.sweeps.task import Task
from sae_outliers.utils.files import read_regular, write_json


@dataclass
class Manifest:
    """A sweep's tasks and how they came about.

    Attributes:
        name: the sweep's, and the file's.
        command: what follows `-m`.
        launcher: the scheduler that has the tasks, a name in SCHEDULERS.
        created: an ISO time.
    """

    name: str
    command: list[str]
    launcher: str
    commit: str
    tasks: list[Task]
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="microseconds"))


def write_manifest(results_dir: Path, manifest: Manifest) -> Path:
    """Write the manifest, in place of a former one of the same name; return its path."""
    path = results_dir / "sweeps" / f"{manifest.name}.json"
    tasks = [_written(task, results_dir) for task in manifest.tasks]
    content = {key: value for key, value in vars(manifest).items() if key != "name"}
    write_json(path, content | {"tasks": tasks})
    return path


def read_manifests(results_dir: Path) -> list[Manifest]:
    """Return all manifests below results_dir, the newest first; none where no sweep was launched.

    Raises:
        ValueError: a file is not a manifest (the path is named).
    """
    found = [_read(path, results_dir) for path in sorted((results_dir / "sweeps").glob("*.json"))]
    return sorted(found, key=_created, reverse=True)


def _created(manifest: Manifest) -> datetime:
    return datetime.fromisoformat(manifest.created).astimezone()


def _written(task: Task, results_dir: Path) -> dict[str, Any]:
    """Return the task as it is written: its folders are relative to results_dir, so that this can be moved."""
    folders = {
        "results": [relpath(folder, results_dir) for folder in task.results],
        "store": relpath(task.store, results_dir),
    }
    content = {key: value for key, value in vars(task).items() if key != "cost"}
    return content | {"overrides": list(task.overrides)} | folders


def _read(path: Path, results_dir: Path) -> Manifest:
    try:
        content: dict[str, Any] = json.loads(read_regular(path))
        tasks = [_read_task(results_dir, **task) for task in content.pop("tasks")]
        manifest = Manifest(name=path.stem, tasks=tasks, **content)
        _created(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a valid sweep manifest ({error}): delete it, and launch the sweep again"
        ) from error


def _read_task(
    results_dir: Path,
    *,
    name: str,
    kind: Literal["extract", "run"],
    overrides: Sequence[str],
    results: Sequence[str],
    store: str,
    job: str | None = None,
    log: str | None = None,
) -> Task:
    folders = tuple(results_dir / folder for folder in results)
    return Task(name, kind, tuple(overrides), folders, results_dir / store, job, log)
