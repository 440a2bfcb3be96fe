"""The manifest of a sweep: `<results_dir>/sweeps/<name>.json` says what was launched, and where its logs are."""

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sae_outliers.utils.files import write_json


@dataclass
class Launched:
    """One task of a sweep. With `pack`, several tasks have the same job.

    Attributes:
        kind: extract, or run.
        results: folders of its runs, relative to results_dir; none for an extraction.
        store: its activations, relative to results_dir.
        job: SLURM's number, `123_4` in an array; None where SLURM has not been told of it, and in a local sweep.
        log: what it writes to stderr; None where that is not known yet.
    """

    name: str
    kind: str
    overrides: list[str]
    results: list[str]
    store: str
    job: str | None = None
    log: str | None = None


@dataclass
class Manifest:
    """`name` is the sweep's, and the file's; `command` is what follows `-m`; `created` is an ISO time."""

    name: str
    command: list[str]
    launcher: str  # slurm or local
    commit: str
    tasks: list[Launched]
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="microseconds"))


def write_manifest(results_dir: Path, manifest: Manifest) -> Path:
    """Write the manifest, in place of a former one of the same name; returns its path."""
    path = results_dir / "sweeps" / f"{manifest.name}.json"
    content = asdict(manifest)
    del content["name"]
    write_json(path, content)
    return path


def read_manifests(results_dir: Path) -> list[Manifest]:
    """All manifests below results_dir, the newest first; none where no sweep was launched.

    Raises:
        ValueError: a file is no manifest (the path is named).
    """
    found = [_read(path) for path in sorted((results_dir / "sweeps").glob("*.json"))]
    return sorted(found, key=_when, reverse=True)


def _when(manifest: Manifest) -> datetime:
    return datetime.fromisoformat(manifest.created).astimezone()


def _read(path: Path) -> Manifest:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        tasks = [Launched(**task) for task in content.pop("tasks")]
        manifest = Manifest(name=path.stem, tasks=tasks, **content)
        _when(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no manifest of a sweep ({error}): delete it, and launch the sweep again"
        ) from error
