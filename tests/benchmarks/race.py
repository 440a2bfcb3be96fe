"""Training steps side by side: ours in several forms, and the peers'."""

import pandas as pd
import torch

from tests.benchmarks import ours, peers
from tests.benchmarks.data import Activations
from tests.benchmarks.plan import Plan
from tests.benchmarks.timing import interleaved


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per case; `ratio` is its median time over that of the encoder's product."""
    x = Activations(plan.size.d_model).draw(plan.size.batch, device)
    cases = ours.training_cases(plan.size, x) | peers.training_cases(plan.size, x)
    for case in cases.values():  # warming up
        case()
    timings = interleaved(cases, plan.rounds, device)
    product = timings[ours.PRODUCT].median
    return pd.DataFrame(
        {
            "case": name,
            **timing.columns(),
            "tokens_per_second": plan.size.batch / timing.median,
            "ratio": timing.median / product,
        }
        for name, timing in timings.items()
    )
