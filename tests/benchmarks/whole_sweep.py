"""The commands of a full sweep around its jobs: planning all of it, and aggregating its records."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from tests.benchmarks.plan import Plan
from tests.conftest import ROOT
from tests.many_records import write_sweep

GRID = ("centering=off,on", "sae=topk,relu", "revival=none,auxk", "seed=range(3)")  # 24 conditions

# Run by a small process of its own: a command's peak memory counts what the process that started it had by then.
MEASURE = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps({"status": status, "seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss * 1024 / 1e6}))
"""


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per command: runs that it is about, seconds, and peak resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = ("-m", "model=glob(*)", f"layer={plan.sweep_layer}", *GRID, "path=/af3", "dry_run=true")
        planned, printed = measured("sae_outliers.run", *sweep, f"results_dir={folder}/planned")
        jobs = int(next(line for line in printed.splitlines() if " job(s) to run" in line).split()[0])
        records = write_sweep(Path(folder), plan.sweep_most_layers)
        aggregation = ("sae_outliers.aggregate", f"results_dir={folder}", "allow_mixed=true")
        whole, _ = measured(*aggregation)
        for path in Path(folder).glob("runs/*/*/*/*.parquet"):
            path.unlink()
        alone, _ = measured(*aggregation)
    rows = [
        {"command": "planning, with a dry run", "runs": jobs, **planned},
        {"command": "aggregation of records", "runs": records, **alone},
        {"command": "aggregation of records, their curves and features", "runs": records, **whole},
    ]
    return pd.DataFrame(rows)


def measured(module: str, *arguments: str) -> tuple[dict[str, float], str]:
    """Seconds and MB of a command, and what it printed. Raises RuntimeError with that, should it fail."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    if figures.pop("status"):
        raise RuntimeError(f"{module} failed:\n{done.stderr}")
    return figures, done.stderr
