"""Tables as CSV and one README with all of them, beside the figure of growth."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from sae_outliers.training.stack import LARGEST
from sae_outliers.utils.files import atomic_write
from tests.benchmarks import ours, peers, stacking
from tests.benchmarks.figure import growth, stacks
from tests.benchmarks.fresh import DEATH, TRAINING
from tests.benchmarks.memory import HOW
from tests.benchmarks.plan import Plan
from tests.benchmarks.selection import DECAY

MOST_RATIO, MOST_MB = 1.3, 300  # that death at initialisation may take: of the product, and beyond it
MOST_DIAGNOSIS = 1.5  # that a diagnosis may take: of a forward pass and a product a layer
WORDS = {
    "seconds": "s",
    "tokens_per_second": "tokens/s",
    "product_seconds": "product, s",
    "ratio": "× the product",
    "stack_seconds": "stack, s",
    "stack_ratio": "stack, × the product",
    "alone_ratio": "alone, × the product",
    "peak_extra_mb": "peak extra MB",
    "peak_mb": "peak MB",
    "weights_mb": "weights MB",
    "gamma": "γ",
    "training_steps": "training steps",
    "selections_differ_pct": "selections that differ (%)",
    "tokens_differ_pct": "tokens that differ (%)",
    "times": "times in a run",
    "share_pct": "share of a run (%)",
    "fvu": "FVU",
    "fvu_change": "its change",
}


def write_table(directory: Path, name: str, frame: pd.DataFrame) -> None:
    """<name>.csv, at full precision."""
    with atomic_write(directory / f"{name}.csv") as path:
        frame.to_csv(path, index=False)


def write(directory: Path, tables: Mapping[str, pd.DataFrame], text: str) -> None:
    """growth.png, stack.png and README.md."""
    for name, drawn in (("growth", growth(tables["growth"])), ("stack", stacks(tables["stack"]))):
        with atomic_write(directory / f"{name}.png") as path:
            drawn.savefig(path, format="png", dpi=200)
    with atomic_write(directory / "README.md") as path:
        path.write_text(text)


def readme(plan: Plan, tables: Mapping[str, pd.DataFrame], machine: Mapping[str, str], command: str) -> str:
    sections = (
        ["# Benchmarks", f"Written by `{command}`. Seconds mean little elsewhere; ratios travel better."],
        ["\n".join(f"- {name}: {fact}" for name, fact in machine.items())],
        _race(plan, tables["peers"]),
        _measuring(plan, tables["measuring"]),
        _stack(plan, tables["stack"]),
        _selection(plan, tables["selection"]),
        _death(plan, tables["death_at_init"]),
        _growth(plan, tables["growth"]),
        _extraction(plan, tables["extraction"]),
        _diagnosis(plan, tables["diagnosis"]),
        _whole_sweep(tables["whole_sweep"]),
    )
    return "\n\n".join(paragraph for section in sections for paragraph in section if paragraph) + "\n"


def _race(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    size = plan.size
    yield "## A training step beside other libraries'"
    yield (
        f"TopK, d_model {size.d_model}, n_features {size.n_features}, k {size.k}, float32, Adam. All take the same "
        f"batch of {size.batch} tokens, normal of unit variance with γ = 1. A step is forward, backward, optimiser and "
        "whatever else each trainer does at every step (unit-norm decoder, clipping, counters of what fired). Rounds "
        f"are interleaved: each of {plan.rounds}, after one that warms up, runs every case once. Medians, with the "
        "fastest and the slowest round; the ratio is of medians."
    )
    yield markdown(with_range(frame))
    yield peers.absent()
    yield (
        "The peers run as they are by default, and SAELens also as its runner compiles it; autocast stays off, but on "
        "a GPU sparsify turns it to bfloat16 by itself. No feature counts as dead but in the rows that say so. Those "
        "with AuxK compute each library's own auxiliary loss, with as many features as it takes; sparsify's is "
        f"weighted by {peers.AUXK_ALPHA:g}. Where Adam's moments of dead features are denormal, they are what they "
        "come to in thousands of steps without a gradient, and what this project's trainer sets to 0."
    )


def _measuring(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    size = plan.size
    yield "## Points of the death curves"
    yield (
        f"A training step of train=short, and an evaluation of {size.batch} tokens, d_model {size.d_model}, n_features "
        f"{size.n_features}, k {size.k}; {plan.rounds} interleaved rounds. Shares are of the steps and evaluations of "
        "a run, the latter of `n_eval` tokens each, without its start and the activations. The first "
        "point takes its figures from the fates at initialisation, and the end its from the last point."
    )
    yield markdown(with_range(frame))


def _stack(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    yield "## Many small SAEs at once"
    yield (
        "A step of all members of a stack, and of the same SAEs one after the other, beside the batched product of all "
        f"their encoders; {plan.rounds} interleaved rounds of {stacking.STEPS} steps. With AuxK, {ours.DEAD_PCT} % of "
        "the features are dead. A run makes stacks of as many members as have "
        f"{LARGEST['cpu']:,} pre-activations a batch together on a CPU, and trains SAEs alone of which not two have."
    )
    yield "![A step in a stack and alone, over stack size and width](stack.png)"
    yield markdown(frame)


def _selection(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    yield "## What precision=bf16_select changes"
    yield (
        "Against exact float32, on the same tokens and weights: how many of the positive selections differ, on how "
        "many tokens any does, and the FVU with bf16_select less that with float32. Normal tokens whose variances fall "
        f"over the dimensions as i^-{DECAY:g}; training steps are of {plan.selection_batch} tokens, with bf16_select. "
        "Where no selection differs, what is left of the change is float32's rounding."
    )
    yield markdown(frame)


def _death(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    row = frame.iloc[0]
    kept = row["ratio"] < MOST_RATIO and row["peak_extra_mb"] < MOST_MB
    yield "## Death at initialisation"
    yield (
        f"The fates of all features over {plan.death_tokens:,} tokens, in chunks of {plan.size.batch} that lie in "
        f"memory, without centering, beside the encoder's product over the same chunks. Memory: {HOW} (on CUDA, of "
        f"torch's allocations); tokens and weights were there before. The bounds, {MOST_RATIO} times the product and "
        f"{MOST_MB} MB, are {'kept' if kept else '**not kept**'}."
    )
    yield markdown(with_range(frame.drop(columns=["us_per_token", "weights_mb"])))


def _growth(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    yield "## Growth"
    yield (
        "Around the size of the first table, a batch at a time; each size and task has a process of its own, and "
        f"at least {plan.large_rounds} rounds and {plan.large_at_least_s:g} seconds of them, interleaved with the "
        "product of the same size. MB are peaks beyond data and weights. A training step's are those of the first: "
        "gradients and Adam's moments, three times the weights, and what it needs beyond them."
    )
    yield "![Time and memory against each size](growth.png)"
    for varied, rows in frame.groupby("varied", sort=False):
        yield markdown(side_by_side(rows, str(varied)))


def _extraction(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    yield "## Extraction"
    if frame.empty:
        yield f"Not measured: the package with the weights of {plan.extraction_model} is not installed."
        return
    yield (
        f"All layers of {plan.extraction_model} in one pass, on {plan.extraction_batches} batches of its data, beside "
        f"a forward pass without hooks; {plan.rounds} interleaved rounds."
    )
    yield markdown(with_range(frame).rename(columns={"ratio": "× the forward pass"}))


def _diagnosis(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    yield "## Diagnosis"
    if frame.empty:
        yield f"Not measured: the package with the weights of {plan.extraction_model} is not installed."
        return
    kept = frame["ratio"].iloc[-1] < MOST_DIAGNOSIS
    size = plan.size
    yield (
        f"All layers of {plan.extraction_model}, {plan.diagnosis_tokens:,} tokens, {size.n_features} features, "
        f"k {size.k}, under four centerings, beside what it cannot do without: each once. The bound, {MOST_DIAGNOSIS} "
        f"times both together, is {'kept' if kept else '**not kept**'}."
    )
    yield markdown(frame.rename(columns={"ratio": "× forward pass and products"}))


def _whole_sweep(frame: pd.DataFrame) -> Iterator[str]:
    yield "## A whole sweep"
    yield (
        "What happens on the login node, each command once, from its start to its end: layers of the paper's 19 models "
        "under 24 conditions, planned, and aggregated from as many records with made-up figures."
    )
    yield markdown(frame)


# --- tables for reading ----------------------------------------------------------------------------------


def side_by_side(rows: pd.DataFrame, varied: str) -> pd.DataFrame:
    """The training step and death at initialisation in one table; the product as timed beside the former."""
    training = rows[rows["task"] == TRAINING].set_index(varied)
    death = rows[rows["task"] == DEATH].set_index(varied)
    columns = {
        varied: training.index,
        "weights_mb": training["weights_mb"],
        "product_seconds": training["product_seconds"],
        "training step, s": training["seconds"],
        "training, × product": training["ratio"],
        "training, MB": training["peak_extra_mb"],
        "death at init, s": death["seconds"],
        "death, × product": death["ratio"],
        "death, MB": death["peak_extra_mb"],
    }
    return pd.DataFrame(columns)


def with_range(frame: pd.DataFrame) -> pd.DataFrame:
    """The fastest and the slowest round in one column."""
    lows, highs = frame["seconds_min"].map(figure), frame["seconds_max"].map(figure)
    place = list(frame.columns).index("seconds") + 1
    frame = frame.drop(columns=["seconds_min", "seconds_max"])
    frame.insert(place, "range", lows + " to " + highs)
    return frame


def markdown(frame: pd.DataFrame) -> str:
    align = ["right" if pd.api.types.is_numeric_dtype(frame[column]) else "left" for column in frame]
    text = frame.map(lambda value: figure(value) if isinstance(value, float) else str(value)).rename(columns=WORDS)
    return str(text.to_markdown(index=False, disable_numparse=True, colalign=align))


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
