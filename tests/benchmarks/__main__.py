"""make bench: timings and memory beside the encoder's matrix product, and beside other SAE libraries.

    python -m tests.benchmarks                       # twenty minutes on two cores
    python -m tests.benchmarks --quick               # seconds; shows that it runs, its timings mean nothing

Tables, a README and a figure go to <results-dir>/benchmarks. Nothing else should run meanwhile.
"""

import argparse
import sys
import time
from pathlib import Path

from sae_outliers.utils.device import resolve_device
from sae_outliers.utils.memory import keep_freed_memory
from tests.benchmarks import (
    diagnosis,
    extraction,
    growth,
    machine,
    measuring,
    race,
    report,
    selection,
    stacking,
    whole_sweep,
)
from tests.benchmarks.plan import QUICK, Plan

PARTS = {
    "peers": race.table,
    "measuring": measuring.table,
    "stack": stacking.table,
    "selection": selection.table,
    "death_at_init": growth.death_at_init,
    "growth": growth.table,
    "extraction": extraction.table,
    "diagnosis": diagnosis.table,
    "whole_sweep": whole_sweep.table,
}


def main() -> None:
    arguments = parse()
    keep_freed_memory()
    plan, device = QUICK if arguments.quick else Plan(), resolve_device(arguments.device)
    facts = machine.description(device) | {"load": machine.load()}
    directory = Path(arguments.results_dir) / "benchmarks"
    tables = {}
    for name, measure in PARTS.items():
        start = time.perf_counter()
        tables[name] = measure(plan, device)
        report.write_table(directory, name, tables[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    command = "make bench" if not arguments.quick else "python -m tests.benchmarks --quick"
    text = report.readme(plan, tables, facts, command)
    report.write(directory, tables, text)
    print(f"{text}\nWritten to {directory}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Timings and memory.")
    parser.add_argument("--quick", action="store_true", help="everything at a tiny size")
    parser.add_argument("--results-dir", default="results", help="tables go to benchmarks/ in this folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args()


if __name__ == "__main__":
    main()
