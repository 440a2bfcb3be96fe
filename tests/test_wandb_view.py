"""The saved view, built offline with W&B's own package, shows what runs log; saving it needs wandb.ai."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from sae_outliers.runs.record import Record
from sae_outliers.tracking import wandb_workspace
from tests.conftest import ROOT, composed

SCRIPT = ROOT / "launch/wandb_view.py"


def panels() -> list[dict[str, Any]]:
    """Of the view as it is sent to W&B."""
    view = wandb_workspace.workspace("me", "mine", "a view")._to_model()
    sections = json.loads(view.spec.model_dump_json(by_alias=True))["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_the_view_has_death_curves_and_bias_by_centering_and_gamma_against_death() -> None:
    curves = [panel["config"] for panel in panels() if panel["viewType"] == "Run History Line Plot"]
    drawn = [metric for curve in curves for metric in curve["metrics"]]
    assert drawn == ["dead_pct_topk", "dead_pct_relu", "dead_pct_window", "b_dec_distance", "b_dec_cos"]
    for curve in curves:
        assert (curve["xAxis"], curve["groupBy"], curve["groupAgg"]) == ("tokens", "centering.value.name", "median")
    scattered = [panel["config"] for panel in panels() if panel["viewType"] == "Scatter Plot"]
    axes = [(plot["xAxis"], plot["yAxis"]) for plot in scattered]
    assert axes == [("summary:gamma", f"summary:dead_pct_init_{kind}") for kind in ("topk", "relu")]


def test_it_names_only_what_runs_have() -> None:
    columns = {field.name for field in fields(Record)}
    assert {"gamma", *wandb_workspace.AT_INIT} <= columns
    writers = [*(ROOT / "sae_outliers/runs").glob("*.py"), ROOT / "sae_outliers/training/loop.py"]
    curves = "".join(path.read_text() for path in writers)
    assert [name for name in (*wandb_workspace.DEATHS, *wandb_workspace.BIAS) if f'"{name}"' not in curves] == []
    cfg: Any = composed()
    for part in wandb_workspace.CENTERING.split("."):
        cfg = cfg[part]
    assert cfg == "off"


def shown(*arguments: str) -> str:
    """What it says on stderr as it ends with status 1."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def test_errors_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown() == "Missing mandatory value: entity\n"
    assert "Key 'owner' not in 'ViewConfig'" in shown("owner=me")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="pip install wandb-workspaces"):
        wandb_workspace.main(["entity=me"])
