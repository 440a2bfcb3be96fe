"""What a command loads before it has anything to do: not by the clock, but by which large libraries are there then."""

import json
import subprocess
import sys
from pathlib import Path

from sae_outliers.sweeps.manifest import Manifest, write_manifest
from tests.test_aggregate import store
from tests.test_tables import make_record

# seconds of CPU each takes, from 0.4 to 2
LARGE = (
    *("torch", "torch._dynamo", "sympy", "torchvision", "transformers", "timm", "datasets", "wandb"),
    *("pandas", "pyarrow", "scipy.stats", "matplotlib", "matplotlib.pyplot", "altair"),
)
CODE = """
import json, sys
from sae_outliers.__main__ import main

commands, large = json.loads(sys.argv[1])
out, sys.stdout = sys.stdout, sys.stderr
loaded = []
for command in commands:
    sys.argv = ["sae-outliers", *command]
    try:
        main()
    except SystemExit as end:
        print(end)
    loaded.append([name for name in large if name in sys.modules])
print(json.dumps(loaded), file=out)
"""


def loaded_after(folder: Path, *commands: list[str]) -> list[set[str]]:
    """Which of them are loaded after each of these commands, one after the other in a new process."""
    asked = json.dumps([commands, LARGE])
    done = subprocess.run([sys.executable, "-c", CODE, asked], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout)]


def test_commands_load_no_more_than_what_they_do_needs(tmp_path: Path) -> None:
    write_manifest(tmp_path / "results", Manifest("a", [], "local", "unknown", []))  # status asks its scheduler
    synthetic = ["model=synthetic/sparse", "tracker=none"]
    light = [["status"], ["models"], ["wandb-sync"], ["aggregate", "--help"], ["run", "--help"]]
    planned = [["run", "-m", "dry_run=true", *synthetic], ["run", "layer=99", *synthetic]]
    measured = ["run", *synthetic, "train=none", "n_eval=500", "sae.n_features=64", "sae.k=4"]
    *before, after_planning, after_refusing, after_measuring = loaded_after(tmp_path, *light, *planned, measured)
    assert before == [set()] * len(light)
    assert after_planning == after_refusing == {"torch"}
    assert after_measuring == {"torch", "pandas", "pyarrow"}  # its features are a table
    assert len(list(tmp_path.glob("results/runs/synthetic/1/*/record.json"))) == 1


def test_aggregation_loads_no_torch(tmp_path: Path) -> None:
    store(tmp_path / "results", make_record())
    empty, full = loaded_after(tmp_path, ["aggregate", "results_dir=empty"], ["aggregate"])
    assert empty == {"pandas", "pyarrow", "matplotlib"}
    assert full == empty | {"altair"}  # for the page
    assert list(tmp_path.glob("results/tables/*.csv"))
