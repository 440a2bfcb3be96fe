"""make bench-gpu: the kernels' tests on a GPU, then what a training step and the rest take there, within nine minutes.

    python -m tests.benchmarks.gpu                          # on the first CUDA GPU
    python -m tests.benchmarks.gpu --quick --device=cpu     # seconds; shows that it runs, its timings mean nothing

<results-dir>/benchmarks/gpu.csv has a row per case. It is written anew after each part: what was measured stays.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

import pandas as pd
import torch

from sae_outliers.activations.stream import TokenStream
from sae_outliers.models.backbone import Backbone, Batch
from tests.benchmarks import extraction, machine, ours, peers, report, stacking
from tests.benchmarks.data import Activations
from tests.benchmarks.plan import QUICK, Size
from tests.benchmarks.roofline import Roofline, Work, measured
from tests.benchmarks.timing import Case, interleaved
from tests.conftest import ROOT

FLOAT = 4  # bytes
# of parameters that a step of Adam reads and writes: weight, gradient and two moments, each written but the last read
ADAM_PASSES = 8


@dataclass(frozen=True)
class GpuPlan:
    sizes: tuple[Size, ...] = (Size(), Size(d_model=2048, n_features=65536, k=64, batch=4096))
    small: Size = field(default_factory=lambda: Size(d_model=64, n_features=512, k=8, batch=256))
    members: tuple[int, ...] = (1, 20, 100)
    death_tokens: int = 100_000
    blocks: int = 12  # of a network of GPT-2's size
    items: int = 32
    context: int = 1024
    rounds: int = 5
    widest: int = 8192  # of the product that says what the device can


TINY = GpuPlan(
    sizes=(QUICK.size,),
    small=QUICK.stack_size,
    members=(1, 2),
    death_tokens=200,
    blocks=2,
    items=2,
    context=16,
    rounds=1,
    widest=128,
)

Rows = Iterator[dict[str, object]]


def main() -> None:
    arguments = parse()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU here: python -m tests.benchmarks.gpu --quick --device=cpu shows that it runs")
    plan = TINY if arguments.quick else GpuPlan()
    rows: list[dict[str, object]] = [kernel_tests()] if device.type == "cuda" else []
    roofline = measured(device, plan.widest)
    rows += [{"part": "device", "case": f"{name}: {fact}"} for name, fact in machine.description(device).items()]
    rows += [
        {"part": "device", "case": "product in float32, TFLOP/s", "figure": roofline.flops_s / 1e12},
        {"part": "device", "case": "copying, GB/s", "figure": roofline.bytes_s / 1e9},
    ]
    for part in PARTS:
        start = time.perf_counter()
        rows += [{"part": part.__name__, **row} for row in part(plan, device, roofline)]
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        report.write_table(Path(arguments.results_dir) / "benchmarks", "gpu", pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description="Timings on a GPU.")
    parser.add_argument("--quick", action="store_true", help="everything at a tiny size")
    parser.add_argument("--results-dir", default="results", help="gpu.csv goes to benchmarks/ in this folder")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --quick")
    return parser.parse_args()


def kernel_tests() -> dict[str, object]:
    """Run the tests of the Triton kernels, which take the GPU where there is one; their last line is the row."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_triton_kernels.py", "tests/test_prefetch.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-4000:], file=sys.stderr, flush=True)
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    return {"part": "kernel_tests", "case": lines[-1], "figure": done.returncode}


# --- parts ----------------------------------------------------------------------------------------------------


def training(plan: GpuPlan, device: torch.device, roofline: Roofline) -> Rows:
    """A training step, with AuxK too, beside the peers that are installed."""
    for size in plan.sizes:
        x = Activations(size.d_model).draw(size.batch, device)
        cases = ours.training_cases(size, x) | peers.training_cases(size, x)
        works = [product_of(size), *repeat(step_of(size), len(cases) - 1)]
        yield from timed(plan, device, roofline, cases, dict(zip(cases, works, strict=True)), size)


def death_at_init(plan: GpuPlan, device: torch.device, roofline: Roofline) -> Rows:
    for size in plan.sizes:
        chunks = Activations(size.d_model).draw(plan.death_tokens, device).split(size.batch)
        case = {f"death at initialisation, {plan.death_tokens} tokens": ours.death_at_init(size, chunks)}
        work = product_of(replace(size, batch=plan.death_tokens))
        yield from timed(plan, device, roofline, case, dict.fromkeys(case, work), size)


def small_stack(plan: GpuPlan, device: torch.device, roofline: Roofline) -> Rows:
    """Small SAEs together and one after the other, in units of `stacking.STEPS` steps; AuxK for the most of them."""
    for members, auxk in [*((members, False) for members in plan.members), (plan.members[-1], True)]:
        found = stacking.cases(plan.small, members, auxk, device)
        revival = ", revival=auxk" if auxk else ""
        cases = {f"{name}, {members} of them{revival}": case for name, case in found.items()}
        works = {
            name: (product_of(plan.small) if name.startswith("product") else step_of(plan.small))
            * members
            * stacking.STEPS
            for name in cases
        }
        yield from timed(plan, device, roofline, cases, works, plan.small)


def network(plan: GpuPlan, device: torch.device, roofline: Roofline) -> Rows:
    """Extraction from all blocks of a network of GPT-2's size with random weights: its figures are times alone."""
    backbone = random_network(plan.blocks, device)
    inputs = [Batch({"input_ids": torch.randint(50_000, (plan.items, plan.context), device=device)}) for _ in range(2)]
    stream = TokenStream("random", "random", None, None, 0, None, plan.items, device)
    cases = extraction.cases(stream, backbone, inputs, range(1, plan.blocks + 1))
    parameters = sum(p.numel() for block in backbone.blocks for p in block.parameters())
    tokens = len(inputs) * plan.items * plan.context
    attention = 2 * plan.blocks * plan.context * 768 * tokens  # its two products, of half of the positions each
    work = Work(2 * parameters * tokens + attention, FLOAT * parameters)
    yield from timed(plan, device, roofline, cases, dict.fromkeys(cases, work), None)


PARTS: tuple[Callable[[GpuPlan, torch.device, Roofline], Rows], ...] = (training, death_at_init, small_stack, network)


def random_network(blocks: int, device: torch.device) -> Backbone:
    """Return GPT-2 small with random weights and so many blocks."""
    from transformers import GPT2Config, GPT2Model

    module = GPT2Model(GPT2Config(n_layer=blocks)).eval().to(device)
    return Backbone(module, list(module.h), items=iter, collate=lambda items: Batch({}), agreed="nothing to agree with")


def timed(
    plan: GpuPlan,
    device: torch.device,
    roofline: Roofline,
    cases: dict[str, Case],
    works: dict[str, Work],
    size: Size | None,
) -> Rows:
    """Yield a row per case: seconds, the least that its work takes, and how much of the former the latter is."""
    for case in cases.values():  # warming up
        case()
    for name, timing in interleaved(cases, plan.rounds, device).items():
        least = roofline.seconds(works[name])
        yield {
            "case": name,
            **({} if size is None else vars(size)),
            **timing.columns(),
            "least_seconds": least,
            "share_pct": 100 * least / timing.median,
        }


# --- the least work -------------------------------------------------------------------------------------------


def product_of(size: Size) -> Work:
    """The encoder's product, whose pre-activations need not reach the memory."""
    weights = size.d_model * size.n_features
    return Work(2 * size.batch * weights, FLOAT * (weights + size.batch * size.d_model))


def step_of(size: Size) -> Work:
    """A TopK step: the product, four sparse ones (decoding, and three gradients), and Adam over all parameters."""
    parameters = 2 * size.d_model * size.n_features
    product = product_of(size)
    sparse = 4 * 2 * size.batch * size.k * size.d_model
    return Work(product.flops + sparse, product.bytes + FLOAT * ADAM_PASSES * parameters)


if __name__ == "__main__":
    main()
