"""The offline W&B file of a real run, read back by W&B's own tool."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sae_outliers.tracking.base import start_tracker
from sae_outliers.tracking.wandb import wandb_mode
from tests.conftest import ROOT, Run

WANDB = Path(sys.executable).with_name("wandb")


def inspected(file: Path) -> list[dict[str, Any]]:
    done = subprocess.run([WANDB, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.weights
def test_curves_are_mirrored_into_an_offline_run_under_our_id(command: Run, tmp_path: Path) -> None:
    done = command(
        "sae_outliers.run", "model=offline/minilm", "layer=2", "n_eval=1000", "sae.n_features=512", "sae.k=8",
        "train.steps=20", "train.n_tokens=2000", "train.batch_size=100", "train.eval_every=5", "group=study",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs/minilm/2").iterdir()
    (file,) = tmp_path.glob(f"wandb/offline-run-*-{run.name}/run-{run.name}.wandb")
    entries = inspected(file)
    (started,) = (entry["run"] for entry in entries if entry["type"] == "run")
    assert started["run_id"] == run.name
    assert started["run_group"] == "study"
    assert started["resume"]
    assert started["tags"] == ["minilm", "language", "topk", "revival-none", "centering-off"]
    assert started["config"]["update"]["sae"]["n_features"] == 512

    metrics = [entry["metric"] for entry in entries if entry["type"] == "metric"]
    assert {"glob_name": "*", "step_metric": "tokens"}.items() <= metrics[-1].items()
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    history = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    assert len(points) == 5
    for point, mirrored in zip(points, history, strict=True):
        assert {name for name in mirrored if not name.startswith("_")} == {n for n, v in point.items() if v is not None}
        assert all(mirrored[name] == pytest.approx(value) for name, value in point.items() if value is not None)
    record = json.loads((run / "record.json").read_text())
    summary = {k: v for e in entries if e["type"] == "summary" for k, v in e["summary"]["update"].items()}
    assert summary["gamma"] == pytest.approx(record["gamma"])
    assert summary["dead_pct_init_topk"] == pytest.approx(record["dead_pct_init_topk"])


def test_online_with_a_key_offline_without_one_and_wandb_mode_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert wandb_mode() == "online"
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password key\n")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(ValueError, match="tracker=mlflow does not exist: use one of none, wandb"):
        start_tracker(OmegaConf.create({"tracker": {"name": "mlflow"}}), 1, "id")  # type: ignore[arg-type]


def test_the_libraries_of_a_tracker_are_what_its_start_imports(tmp_path: Path) -> None:
    start = (
        "import sys\n"
        "from sae_outliers.tracking.base import TRACKERS, start_tracker\n"
        "from tests.conftest import composed\n"
        f"cfg = composed('model=offline/minilm', 'tracker=wandb', 'results_dir={tmp_path}')\n"
        "libraries = TRACKERS['wandb'].libraries\n"
        "assert 'wandb' in libraries and not any(name in sys.modules for name in libraries)\n"
        "start_tracker(cfg, 1, 'an_id').finish({})\n"
        "assert all(name in sys.modules for name in libraries)"
    )
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "wandb").glob("offline-run-*-an_id"))
