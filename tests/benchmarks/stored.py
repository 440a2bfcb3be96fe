"""What storing activations in 16 bits changes, and what reading them takes, against float32.

    python -m tests.benchmarks.stored                          # all layers of the models that come with packages
    python -m tests.benchmarks.stored --only=layers minilm     # of one; rows of other models stay in the tables

Writes stored_reading.csv, stored.csv and stored_trained.csv to results/benchmarks, and prints what docs/data.md has.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.activations.coding import CENTRED_ON, Centred
from sae_outliers.activations.layer_files import StoredLayer
from sae_outliers.activations.split import DOC_START
from sae_outliers.activations.store import BLOCK_BATCHES, LayerTokens
from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import extract, stored_layer
from sae_outliers.runs.execute import run
from sae_outliers.runs.identity import run_directories
from sae_outliers.runs.layer_data import SeverityMeter
from sae_outliers.runs.layer_spec import layers_of
from sae_outliers.runs.record import read_record
from sae_outliers.runs.setup import Fates, RunSetup, set_up
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import PREPROCESSINGS
from tests.benchmarks import report
from tests.benchmarks.timing import interleaved
from tests.conftest import composed

MODELS = ("minilm", "spliceai", "efficientnet_lite0", "sapiens", "antiberty", "vit_s14", "smollm2")
TRAINED = {"minilm": 3, "spliceai": 8}  # a layer of each
PARTS = ("reading", "layers", "trained")
CPU = torch.device("cpu")
PLANTED = (10.0, 100.0, 1000.0)
CHOSEN = "float16, centred"
MORE = (("data.rescale_mean=10",), ("data.rescale_mean=1000",), ("centering=on",))  # of each model's middle layer
N_EVAL = 2_000
SHORT = ["train=short", "train.steps=300", "train.batch_size=256", "train.n_tokens=20_000", "n_eval=4000"]
SMALL = ["sae.n_features=1024", "sae.k=32", "tracker=none"]
BATCH, SHARD = 512, 8192  # tokens, of reading
Rows = list[tuple[Tensor, Tensor]]  # chunks [n, d_model], and which of them are special, bool [n]
Coded = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """Of one layer: γ, and the fates of the features under each condition."""

    gamma: float
    fates: list[Tensor]


def centred(rows: Rows) -> Centred:
    """Return the coding of a layer that begins with these rows."""
    first, special = (torch.cat(parts)[:CENTRED_ON] for parts in zip(*rows[:1], strict=True))
    return Centred.on(first, ~special)


def float16_centred(rows: Rows) -> Coded:
    coding = centred(rows)
    return lambda x: coding.decode(torch.from_numpy(coding.encode(x)))


def bfloat16_centred(rows: Rows) -> Coded:
    coding = centred(rows)
    return lambda x: ((x - coding.centre) / coding.scale).bfloat16() * coding.scale + coding.centre


# of a layer's rows: what each way to store them makes of rows
WAYS: dict[str, Callable[[Rows], Coded]] = {
    CHOSEN: float16_centred,
    "bfloat16, centred": bfloat16_centred,
    "float16": lambda _: lambda x: x.half().float(),
    "bfloat16": lambda _: lambda x: x.bfloat16().float(),
}


def compared(model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer and way to store; more is measured of the middle layer."""
    asked = [f"model=offline/{model}", "train=none", f"n_eval={N_EVAL}", f"results_dir={folder}"]
    conditions = [composed(*asked, *overrides) for overrides in ((), *MORE)]
    cfg = conditions[0]
    layers = layers_of(cfg.model, "all")
    extract(cfg, layers)
    for layer in layers:
        rows = list(LayerTokens(stored_layer(cfg, layer), cfg.n_eval, 0, cfg.special_tokens).eval_rows())
        is_middle = layer == layers[len(layers) // 2]
        exact = found(rows, layer, conditions if is_middle else conditions[:1], count=True)
        planted = {gamma: planted_at(rows, gamma) for gamma in PLANTED if is_middle}
        for name, way in WAYS.items():
            stored = kept(rows, way)
            now = found(stored, layer, conditions[: len(exact.fates)], count=is_middle or name == CHOSEN)
            yield {
                "model": model,
                "layer": layer,
                "stored": name,
                "gamma": exact.gamma,
                "gamma_change": abs(now.gamma / exact.gamma - 1),
                **{f"gamma_change_{g:g}": change_of_gamma(moved, kept(moved, way)) for g, moved in planted.items()},
                "conditions": len(now.fates),
                "fates_changed_pct": fmean(map(changed_pct, exact.fates, now.fates)) if now.fates else None,
                "overflows": sum(int((~x.isfinite()).sum()) for x, _ in stored),
            }
        print(f"{model} layer {layer}", file=sys.stderr)


def changed_pct(exact: Tensor, now: Tensor) -> float:
    return 100 * (exact != now).double().mean().item()


def found(rows: Rows, layer: int, conditions: Sequence[RunConfig], count: bool) -> Found:
    """Measure a layer as a run does, with or without fates; all conditions have the same SAE."""
    cfg = conditions[0]
    meter = SeverityMeter(cfg.preprocessing, cfg.special_tokens, CPU)
    for x, special in rows:
        meter.update(x, special)
    setups: list[RunSetup] = []
    for one in conditions if count else ():
        sae = setups[0].sae if setups else None
        setups.append(set_up(one, layer, Path(), meter.severity, CPU, sae=sae))
    if setups:
        Fates(setups).count(PREPROCESSINGS[cfg.preprocessing](x[~special]) for x, special in rows)
    return Found(meter.severity.sae_tokens.gamma, [setup.fates.fates for setup in setups])


def kept(rows: Rows, way: Callable[[Rows], Coded]) -> Rows:
    """Return the rows as they are read after they were stored in this way."""
    coded = way(rows)
    return [(coded(x), special) for x, special in rows]


def planted_at(rows: Rows, gamma: float) -> Rows:
    """Return the rows with a mean that gives them this γ before any preprocessing."""
    before = moments(x[~special] for x, special in rows)
    shift = ((gamma / before.gamma - 1) * before.mean).float()
    return [(x + shift, special) for x, special in rows]


def change_of_gamma(exact: Rows, stored: Rows) -> float:
    """Return by how much γ of the rows changes, relatively; infinity where nothing that varies is left."""
    before, after = (moments(x[~special] for x, special in rows) for rows in (exact, stored))
    try:
        return abs(after.gamma / before.gamma - 1)
    except ValueError:  # γ is not defined of it
        return math.inf


def trained(model: str, layer: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the FVU of SAEs trained on either store, and on float32 that a pass of other batches left."""
    stores = {
        CHOSEN: ["store_dtype=float16"],
        "float32": ["store_dtype=float32"],
        "float32, batches of 5": ["store_dtype=float32", "data.batch_size=5"],
    }
    for number, (name, overrides) in enumerate(stores.items()):
        results_dir = folder / f"trained{number}"
        asked = [f"model=offline/{model}", f"layer={layer}", *SHORT, *SMALL, *overrides, f"results_dir={results_dir}"]
        variants = [composed(*asked, f"centering={centering}") for centering in ("off", "on")]
        run(composed(*asked), variants)
        for one in variants:
            record = read_record(run_directories(one, [layer])[0])
            yield {
                "model": model, "layer": layer, "stored": name, "centering": record.centering,
                "fvu": record.fvu, "dead_pct_final": record.dead_pct_final,
            }  # fmt: skip


def reading(folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the seconds of an epoch of training batches from the page cache, shards verified before."""
    n_train = BLOCK_BATCHES * BATCH
    for d_model in (384, 768, 1536):
        cases = {}
        for dtype in ("float32", "float16"):
            layer = StoredLayer(folder / f"{d_model} {dtype}", 1)
            generator = torch.Generator().manual_seed(0)
            for first in range(0, n_train + 2 * SHARD, SHARD):
                files = layer.rest if first and dtype == "float16" else layer.exact
                if first == SHARD and dtype == "float16":
                    layer.begin_rest()
                x = 3 + torch.randn(SHARD, d_model, generator=generator)
                files.append(x, torch.full((SHARD,), DOC_START, dtype=torch.uint8), items=1)
            cases[dtype] = partial(_epoch, LayerTokens(layer, SHARD, n_train, False))
            cases[dtype]()
        timings = interleaved(cases, rounds, CPU)
        yield {
            "d_model": d_model,
            "float32_seconds": timings["float32"].median, "float16_seconds": timings["float16"].median,
            "ratio": timings["float16"].median / timings["float32"].median,
            "ratio_of_fastest": timings["float16"].fastest / timings["float32"].fastest,
        }  # fmt: skip


def _epoch(tokens: LayerTokens) -> None:
    for _ in islice(tokens.training_batches(BATCH, 0), BLOCK_BATCHES):
        pass


def main() -> None:
    arguments = parse()
    directory, parts = Path(arguments.results_dir) / "benchmarks", [arguments.only] if arguments.only else PARTS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "reading" in parts:
            rows = list(reading(folder / "reading", arguments.rounds))
            report.write_table(directory, "stored_reading", pd.DataFrame(rows))
        for model in arguments.models:
            if "layers" in parts:
                update(directory / "stored.csv", list(compared(model, folder)))
            if "trained" in parts and model in TRAINED:
                update(directory / "stored_trained.csv", list(trained(model, TRAINED[model], folder)))
    if "layers" in parts:
        print(summary(pd.read_csv(directory / "stored.csv")).to_markdown())


def summary(layers: pd.DataFrame) -> pd.DataFrame:
    """Return for each way to store γ's change in the worst layer, and the share of fates that change in all."""
    worst = ["gamma_change", *(f"gamma_change_{gamma:g}" for gamma in PLANTED), "overflows"]
    grouped = layers[layers["conditions"] > 0].groupby("stored", sort=False)
    fates = {"fates_changed_pct": grouped["fates_changed_pct"].mean(), "layers with fates": grouped.size()}
    every = layers.groupby("stored", sort=False)
    return every[worst].max().assign(layers=every.size(), **fates)


def update(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, and those of other models that the file has."""
    others = pd.read_csv(path).to_dict("records") if path.exists() else []
    measured = {row["model"] for row in rows}
    those = [row for row in others if row["model"] not in measured]
    report.write_table(path.parent, path.stem, pd.DataFrame([*those, *rows]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stored", description="Activations in 16 bits.")
    parser.add_argument("models", nargs="*", default=MODELS, help="of model=offline/; all by default")
    parser.add_argument("--only", choices=PARTS, help="one of the tables")
    parser.add_argument("--rounds", type=int, default=7, help="of reading")
    parser.add_argument("--results-dir", default="results", help="tables go to benchmarks/ in this folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
