"""Small SAEs trained in a stack beside each alone, over the stack's size, the width and the threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.training.revival import AuxK
from sae_outliers.training.stack import Stack
from sae_outliers.training.trainer import Trainer
from tests.benchmarks import ours
from tests.benchmarks.data import Activations
from tests.benchmarks.plan import Plan, Size
from tests.benchmarks.timing import Case, interleaved

STEPS = 3  # in a round: one alone is short


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per stack: a step of all its members, together and one after the other, beside all their products."""
    rows = []
    for threads in (1, 2):
        with threads_of_torch(threads):
            for size, members, auxk in shapes(plan):
                timings = interleaved(cases(size, members, auxk, device), plan.rounds, device)
                product = timings["product"].median
                rows.append(
                    {
                        "threads": threads, **asdict(size), "members": members, "revival": "auxk" if auxk else "none",
                        "product_seconds": product / STEPS,
                        "stack_seconds": timings["stack"].median / STEPS,
                        "stack_ratio": timings["stack"].median / product,
                        "alone_ratio": timings["alone"].median / product,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def shapes(plan: Plan) -> Iterator[tuple[Size, int, bool]]:
    for members in plan.stack_members:
        yield plan.stack_size, members, False
    yield plan.stack_size, plan.stack_members[-1], True
    for width in plan.stack_widths:
        yield replace(plan.stack_size, d_model=width, n_features=8 * width), 4, False
    yield plan.size, 2, False


def cases(size: Size, members: int, auxk: bool, device: torch.device) -> dict[str, Case]:
    """A step of a stack, of its members alone, and the members' products; AuxK finds a fifth of the features dead."""
    x = Activations(size.d_model).draw(size.batch, device)
    make = ours.with_dead_features if auxk else ours.plain
    together, alone = ([make(size, device) for _ in range(members)] for _ in range(2))
    assert all(isinstance(one.revival, AuxK) == auxk for one in together)
    stack, batch = Stack(together), x.expand(members, *x.shape)
    W_enc = stack.W_enc.clone().transpose(1, 2)
    products = x.new_empty(members, size.batch, size.n_features)
    found = {
        "product": repeated(lambda: torch.bmm(batch, W_enc, out=products)),
        "stack": repeated(lambda: stack.train_step([x] * members)),
        "alone": repeated(lambda: step_each(alone, x)),
    }
    for case in found.values():  # warming up
        case()
    return found


def repeated(case: Case) -> Case:
    def steps() -> None:
        for _ in range(STEPS):
            case()

    return steps


def step_each(trainers: list[Trainer], x: Tensor) -> None:
    for one in trainers:
        one.train_step(x)


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
