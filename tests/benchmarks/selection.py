"""What precision=bf16_select changes beside exact float32, at initialisation and after some training."""

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import compare_selection
from tests.benchmarks import ours
from tests.benchmarks.data import Activations
from tests.benchmarks.plan import Plan

DECAY = 0.5  # variances fall as the root of a dimension's rank: anisotropic, yet no few dimensions hold them all
CHUNK = 4096  # tokens


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """Shares in percent; the change of the FVU is bf16_select's less float32's."""
    rows = []
    for gamma in plan.selection_gammas:
        data = Activations(plan.size.d_model, gamma, DECAY)
        size = replace(plan.size, batch=plan.selection_batch)
        trainer = ours.plain(size, device, precision="bf16_select")
        sae = trainer.sae
        assert isinstance(sae, TopK)
        for steps in (0, plan.selection_steps):
            for _ in range(steps):
                trainer.train_step(data.draw(size.batch, device))
            tokens = data.draw(plan.selection_tokens, device)
            rows.append({"gamma": gamma, "training_steps": steps, **compare(sae, tokens)})
    return pd.DataFrame(rows)


@torch.no_grad()
def compare(sae: TopK, tokens: Tensor) -> dict[str, float]:
    selections, tokens_changed, fvu_change = compare_selection(sae, tokens.split(CHUNK))
    error = sum((chunk - sae(chunk)).double().square().sum() for chunk in tokens.split(CHUNK))
    return {
        "tokens": len(tokens),
        "selections_differ_pct": selections,
        "tokens_differ_pct": tokens_changed,
        "fvu": float(error / (tokens - tokens.mean(0)).double().square().sum()),
        "fvu_change": fvu_change,
    }
