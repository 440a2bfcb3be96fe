"""What the points of the death curves take beside the training steps between them, as train=short has them."""

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import evaluate, evaluate_by_screening
from sae_outliers.sae.screening import pays
from sae_outliers.stats.transforms import Affine
from tests.benchmarks import ours
from tests.benchmarks.data import Activations
from tests.benchmarks.plan import Plan
from tests.benchmarks.timing import Case, interleaved
from tests.conftest import composed

STEP = "a training step"
FLOAT32 = "evaluation, as at the end"
SCREENED = "evaluation by screening, as at the points between"


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per case, and its share of a run: the first point costs nothing beside the fates at initialisation."""
    cfg = composed("train=short")
    train, activations = cfg.train, Activations(plan.size.d_model)
    trainer = ours.plain(plan.size, device)
    sae = trainer.sae
    assert isinstance(sae, TopK)
    cases = {STEP: ours.step_of(trainer, activations.draw(train.batch_size, device))}
    cases |= evaluations(sae, activations.draw(plan.size.batch, device))
    for case in cases.values():  # warming up
        case()
    timings = interleaved(cases, plan.rounds, device)
    between, chunks = len(range(train.eval_every, train.steps, train.eval_every)), cfg.n_eval / plan.size.batch
    screened = between if pays(sae.W_enc) else 0
    times = {STEP: float(train.steps), FLOAT32: chunks * (between + 1 - screened), SCREENED: chunks * screened}
    seconds = {name: times[name] * timing.median for name, timing in timings.items()}
    total = sum(seconds.values())
    return pd.DataFrame(
        {
            "case": name,
            **timing.columns(),
            "times": times[name],
            "share_pct": 100 * seconds[name] / total,
        }
        for name, timing in timings.items()
    )


def evaluations(sae: TopK, x: Tensor) -> dict[str, Case]:
    """Both ways of evaluating the SAE on tokens [tokens, d_model], without centering."""
    off, variance = Affine(x.new_zeros(x.shape[1])), x.var(0).sum().item()
    return {
        FLOAT32: lambda: evaluate(sae, off, [x], variance),
        SCREENED: lambda: evaluate_by_screening(sae, off, [x], variance),
    }
