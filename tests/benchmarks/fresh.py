"""One case at one size, with its time and memory, in a process of its own.

Memory that a process once had does not all go back to the system, so a second case in the same process seems to need
less. `python -m tests.benchmarks.fresh <job as JSON>` prints the figures as JSON; `in_fresh_process` calls it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks import ours
from tests.benchmarks.data import Activations
from tests.benchmarks.memory import MB, peak_extra_mb
from tests.benchmarks.plan import Size
from tests.benchmarks.timing import Case, interleaved

ROOT = Path(__file__).parents[2]
TRAINING, DEATH = "training step", "death at initialisation"


@dataclass(frozen=True)
class Job:
    task: str  # TRAINING or DEATH
    size: Size
    tokens: int  # in chunks of size.batch
    rounds: int
    at_least_s: float  # of rounds
    device: str


def in_fresh_process(job: Job) -> dict[str, float]:
    """Raises RuntimeError with the other process's error, should it fail."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{job} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(job: Job) -> dict[str, float]:
    """Seconds for all tokens, of the case and of the encoder's product alone; MB beyond data and weights."""
    device = torch.device(job.device)
    _load_libraries(job.task, device)
    x = Activations(job.size.d_model).draw(job.tokens, device)
    chunks = x.split(job.size.batch)
    W_enc = ours.topk(job.size, device).W_enc.detach()
    case = case_of(job.task, job.size, chunks)
    peak = peak_extra_mb(case, device)  # of the first call, which also makes the optimiser's state

    def product() -> None:
        for chunk in chunks:
            chunk @ W_enc

    product()
    timings = interleaved({"product": product, "case": case}, job.rounds, device, job.at_least_s)
    return {
        **timings["case"].columns(),
        "product_seconds": timings["product"].median,
        "ratio": timings["case"].median / timings["product"].median,
        "us_per_token": 1e6 * timings["case"].median / job.tokens,
        "peak_extra_mb": peak,
        "weights_mb": 2 * W_enc.nbytes / MB,
    }


def case_of(task: str, size: Size, chunks: Sequence[Tensor]) -> Case:
    if task == DEATH:
        return ours.death_at_init(size, chunks)
    return ours.step_of(ours.plain(size, chunks[0].device), chunks[0])


def _load_libraries(task: str, device: torch.device) -> None:
    """Run the case at a tiny size: the code that a first call loads would count as its memory."""
    tiny = Size(d_model=64, n_features=256, k=8, batch=64)
    x = Activations(tiny.d_model).draw(tiny.batch, device)
    case_of(task, tiny, [x])()


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(measure(Job(**job | {"size": Size(**job["size"])}))))
