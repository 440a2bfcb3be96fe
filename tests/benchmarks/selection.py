"""What precision=bf16_select changes beside exact float32, at initialisation and after some training."""

from dataclasses import replace

import pandas as pd
import torch

from sae_outliers.evaluate import compare_selection
from sae_outliers.train import Trainer
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
        trainer = Trainer(ours.topk(size, device, precision="bf16_select"), ours.config(size))
        for steps in (0, plan.selection_steps):
            for _ in range(steps):
                trainer.train_step(data.draw(size.batch, device))
            tokens = data.draw(plan.selection_tokens, device)
            selections, tokens_changed, fvu_change = compare_selection(trainer.sae, tokens.split(CHUNK))
            rows.append(
                {
                    "gamma": gamma,
                    "training_steps": steps,
                    "tokens": len(tokens),
                    "selections_differ_pct": selections,
                    "tokens_differ_pct": tokens_changed,
                    "fvu_change": fvu_change,
                }
            )
    return pd.DataFrame(rows)
