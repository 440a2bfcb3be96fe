"""Manifests: what is written is read back, newest first, in the format that the files promise."""

import json
from pathlib import Path

import pytest

from sae_outliers.sweeps.manifest import Manifest, read_manifests, write_manifest
from sae_outliers.sweeps.task import Task

FORMER = """{
  "command": [
    "model=offline/minilm"
  ],
  "launcher": "local",
  "commit": "c",
  "tasks": [
    {
      "name": "minilm activations",
      "kind": "extract",
      "overrides": [
        "task=extract"
      ],
      "results": [],
      "store": "activations/minilm-0b",
      "job": null,
      "log": null
    },
    {
      "name": "minilm layer 1",
      "kind": "run",
      "overrides": [
        "layer=1"
      ],
      "results": [
        "runs/minilm/1/0a"
      ],
      "store": "activations/minilm-0b",
      "job": null,
      "log": "/x/1/output.log"
    }
  ],
  "created": "2026-01-02T10:00:00+00:00"
}
"""


def tasks(results_dir: Path) -> list[Task]:
    store = results_dir / "activations/minilm-0b"
    folders = (results_dir / "runs/minilm/1/0a",)
    return [
        Task("minilm activations", "extract", ("model=offline/minilm", "task=extract"), (), store),
        Task("minilm layer 1", "run", ("model=offline/minilm", "layer=1"), folders, store, "12_3", "/x/e.err"),
    ]


def sweep(name: str, **changes: object) -> Manifest:
    values = {"command": ["model=offline/minilm", "layer=all"], "launcher": "slurm", "commit": "abc-dirty"}
    return Manifest(**{"name": name, "tasks": [], **values, **changes})  # type: ignore[arg-type]


def test_a_manifest_is_read_back_as_it_was_written_and_in_the_promised_keys(tmp_path: Path) -> None:
    written = sweep("2026-01-02_10-00-00", tasks=tasks(tmp_path))
    path = write_manifest(tmp_path, written)
    assert path == tmp_path / "sweeps/2026-01-02_10-00-00.json"
    assert read_manifests(tmp_path) == [written]
    assert [task.model for task in written.tasks] == ["minilm", "minilm"]
    content = json.loads(path.read_text())
    assert content.keys() == {"command", "created", "launcher", "commit", "tasks"}
    assert content["tasks"][1] == {
        "name": "minilm layer 1",
        "kind": "run",
        "overrides": ["model=offline/minilm", "layer=1"],
        "results": ["runs/minilm/1/0a"],
        "store": "activations/minilm-0b",
        "job": "12_3",
        "log": "/x/e.err",
    }


def test_a_manifest_of_a_former_version_is_read_and_written_again_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "sweeps" / "old.json"
    path.parent.mkdir()
    path.write_text(FORMER)
    (manifest,) = read_manifests(tmp_path)
    assert manifest.tasks[1].results == (tmp_path / "runs/minilm/1/0a",)
    write_manifest(tmp_path, manifest)
    assert path.read_text() == FORMER


def test_a_manifest_is_replaced_when_its_jobs_are_known(tmp_path: Path) -> None:
    before = sweep("s", tasks=tasks(tmp_path)[:1])
    write_manifest(tmp_path, before)
    before.tasks[0].job = "7"
    write_manifest(tmp_path, before)
    (after,) = read_manifests(tmp_path)
    assert after.tasks[0].job == "7"
    assert after.created == before.created


def test_the_newest_comes_first_whatever_the_names_and_time_zones(tmp_path: Path) -> None:
    write_manifest(tmp_path, sweep("b", created="2026-01-02T10:00:00+00:00"))
    write_manifest(tmp_path, sweep("c", created="2026-01-02T10:30:00+02:00"))  # 08:30 in UTC
    write_manifest(tmp_path, sweep("a", created="2026-01-02T11:00:00+00:00"))
    assert [manifest.name for manifest in read_manifests(tmp_path)] == ["a", "b", "c"]
    assert read_manifests(tmp_path / "nowhere") == []


WHOLE = {"command": [], "created": "2026-01-02", "launcher": "local", "commit": "c", "tasks": []}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "cannot be interpreted"),
        ("{}", "tasks"),
        ('{"tasks": []}', "missing"),
        (json.dumps(WHOLE | {"created": "yesterday"}), "yesterday"),
        (json.dumps(WHOLE | {"tasks": [{}]}), "missing"),
        (json.dumps(WHOLE | {"owner": "me"}), "owner"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "sweeps/broken.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"broken\.json is not a valid sweep manifest \(.*{why}"):
        read_manifests(tmp_path)
