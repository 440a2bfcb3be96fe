"""python -m tests.many_records <results_dir> [layers of a model]: records of a full sweep, on which nothing was run.

454 layers of the paper's 19 models, 24 trained conditions each (two centerings, two SAEs, two revivals, three seeds),
with curves and features. Figures are drawn at random around the closed forms; the features of a condition are the same
in every layer, as hard links, which keeps 11,000 runs at 0.2 GB.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sae_outliers.paths import PAPER_MODELS
from sae_outliers.results.layout import run_dir
from sae_outliers.results.record import SCHEMA_VERSION
from sae_outliers.runs.record import Record
from sae_outliers.stats import theory
from sae_outliers.utils.files import write_json

CONF = Path(__file__).parents[1] / "conf" / "model"
STEPS, EVERY, BATCH = 2000, 50, 1024
SIZES = {"n_eval": 20_000, "n_features": 8192, "k": 64}
CONDITIONS = list(product(("off", "on"), ("topk", "relu"), ("none", "auxk"), range(3)))


def write_sweep(results_dir: Path, most_layers: int | None = None) -> int:
    """Write the runs of all models, of each its first `most_layers`; returns their number."""
    random, written = np.random.default_rng(0), 0
    curve, features = _curve(random), {condition: _features(random) for condition in CONDITIONS}
    originals: dict[tuple[Any, ...], Path] = {}
    for model, layer in layers(most_layers):
        gamma, d_model = random.lognormal(0.3, 0.7), model.get("d_model") or 768
        for condition in CONDITIONS:
            record = _record(model, layer, d_model, float(gamma), condition, random)
            directory = run_dir(results_dir, record.model, record.layer, record.run_id)
            directory.mkdir(parents=True)
            write_json(directory / "record.json", asdict(record))
            falling = curve.assign(**_deaths(curve, record))
            falling.to_parquet(directory / "curves.parquet", index=False)
            if condition in originals:
                os.link(originals[condition], directory / "features.parquet")
            else:
                originals[condition] = directory / "features.parquet"
                features[condition].to_parquet(originals[condition], index=False)
            written += 1
    return written


def layers(most: int | None) -> Iterator[tuple[dict[str, Any], int]]:
    for name in sorted(PAPER_MODELS):
        model = yaml.safe_load((CONF / f"{name}.yaml").read_text())["model"]
        for layer in range(model.get("first_layer", 1), model["last_layer"] + 1)[:most]:
            yield model, layer


def _record(
    model: dict[str, Any],
    layer: int,
    d_model: int,
    gamma: float,
    condition: tuple[Any, ...],
    random: np.random.Generator,
) -> Record:
    centering, sae, revival, seed = condition
    seen = gamma if centering == "off" else 0.01
    topk = float(np.clip(100 * theory.dead_by_topk_small_gamma(seen, **SIZES) + random.normal(0, 3), 0, 100))
    relu = float(np.clip(100 * theory.dead_by_relu(seen, SIZES["n_eval"]), 0, topk))
    end = topk * (0.1 if revival == "auxk" else 0.4)
    severity = {name: gamma * random.uniform(0.9, 1.1) for name in Record.__annotations__ if name.startswith("gamma_")}
    return Record(
        run_id="-".join(map(str, condition)), model=model["name"], domain=model["domain"], layer=layer,
        last_layer=model["last_layer"], sae=sae, revival=revival, centering=centering, preprocessing="postln",
        special_tokens=False, **SIZES, seed=seed, sae_seed=seed, init="random", init_b_dec="zeros", planted_gamma=None,
        data="text", train_steps=STEPS, train_batch_size=BATCH, n_train=2_000_000, lr=3e-4, b_dec_lr=3e-4,
        warmup_steps=50, decay_from=0.8, dead_window=100_000, precision="float32", sae_options="{}",
        revival_options='{"alpha": 0.03125}' if revival == "auxk" else "{}", d_model=d_model,
        **{"gamma": gamma, **severity, "gamma_sae_input": seen}, effective_rank=float(random.uniform(5, 300)),
        outlier_dims=[[int(random.integers(d_model)), float(random.uniform(1, 90))] for _ in range(10)],
        dead_pct_init_topk=topk, dead_pct_init_relu=relu, alignment_dead_init=-0.2 if topk else None,
        theory_pct_topk=100 * float(theory.dead_by_topk(seen, **SIZES)),
        theory_pct_relu=100 * float(theory.dead_by_relu(seen, SIZES["n_eval"])),
        theory_pct_topk_small_gamma=100 * float(theory.dead_by_topk_small_gamma(seen, **SIZES)),
        dead_pct_final=end, dead_pct_final_topk=end, dead_pct_final_relu=relu, dead_pct_final_window=end,
        fvu=float(random.uniform(0.05, 0.4)), l0=64.0, b_dec_distance=float(random.uniform(0.5, 1)), b_dec_cos=0.3,
        select_pct_changed=None, select_pct_tokens_changed=None, select_fvu_change=None, git_commit="0" * 40,
        device="cpu (2 threads)", versions={"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"}, seconds=60.0,
        side_by_side=1, store_dtype="float16", peak_memory_mb=900.0, schema_version=SCHEMA_VERSION,
    )  # fmt: skip


def _curve(random: np.random.Generator) -> pd.DataFrame:
    steps = np.arange(0, STEPS + 1, EVERY)
    columns = {"loss": random.uniform(0.1, 1, len(steps)), "lr": np.full(len(steps), 3e-4), "fvu": 0.2, "l0": 64.0}
    return pd.DataFrame({"step": steps, "tokens": steps * BATCH, **columns, "b_dec_cos": 0.3})


def _deaths(curve: pd.DataFrame, record: Record) -> dict[str, np.ndarray]:
    """From the record's figure at initialisation to that at the end."""
    left = 1 - curve["step"].to_numpy() / STEPS
    columns = {"dead_pct": "topk", "dead_pct_topk": "topk", "dead_pct_relu": "relu", "dead_pct_window": "topk"}
    ends = {
        name: (getattr(record, f"dead_pct_init_{kind}"), getattr(record, f"dead_pct_final_{kind}"))
        for name, kind in columns.items()
    }
    return {name: end + (init - end) * left for name, (init, end) in ends.items()} | {"b_dec_distance": 0.5 + left / 2}


def _features(random: np.random.Generator) -> pd.DataFrame:
    """As `runs.measure` makes them: dead features point away from μ."""
    n = SIZES["n_features"]
    alignment = random.normal(0, 0.3, n).clip(-1, 1)
    before = np.where(alignment < -0.5, 2, np.where(alignment + random.normal(0, 0.1, n) < -0.2, 1, 0))
    after = np.where(random.uniform(size=n) < 0.5, 0, before)
    figures = {
        f"{name}_{when}": random.uniform(0, 9, n) for name in ("selected", "highest") for when in ("init", "final")
    }
    frame = pd.DataFrame(
        {"feature": np.arange(n), "fate_init": before, "alignment_init": alignment, "fate_final": after}
    )
    kinds = {"fate_init": "int8", "fate_final": "int8", "alignment_init": "float32"}
    return frame.assign(**figures, alignment_final=alignment).astype(kinds)


if __name__ == "__main__":
    print(f"{write_sweep(Path(sys.argv[1]), *map(int, sys.argv[2:]))} runs")
