"""The commands of a full sweep around its jobs: planning all of it, and aggregating its records."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from tests.benchmarks.plan import Plan
from tests.conftest import ROOT
from tests.many_records import write_sweep

GRID = ("centering=off,on", "sae=topk,relu", "revival=none,auxk", "seed=range(3)")  # 24 conditions


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per command: jobs or records, seconds and peak resident memory from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        records = write_sweep(Path(folder), plan.sweep_most_layers)
        sweep = ("-m", "model=glob(*)", f"layer={plan.sweep_layer}", *GRID, "path=/af3", "dry_run=true")
        planning = measured("sae_outliers.run", *sweep, f"results_dir={folder}/planned")
        aggregating = measured("sae_outliers.aggregate", f"results_dir={folder}", "allow_mixed=true")
    jobs = int(next(line for line in planning["printed"].splitlines() if " job(s) to run" in line).split()[0])
    rows = [
        {"command": "planning, with a dry run", "runs": jobs, **planning},
        {"command": "aggregation into tables and figures", "runs": records, **aggregating},
    ]
    return pd.DataFrame(rows).drop(columns="printed")


def measured(module: str, *arguments: str) -> dict[str, float | str]:
    """Raises RuntimeError with what the command printed, should it fail."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        printed = output.read()
    if status:
        raise RuntimeError(f"{module} failed:\n{printed}")
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss * 1024 / 1e6, "printed": printed}
