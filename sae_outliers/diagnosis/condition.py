"""What becomes of the features of an SAE at initialisation under one centering."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_outliers.diagnosis.unseen import Unseen, unseen
from sae_outliers.sae.evaluation import ALWAYS_ON, FateCounter


@dataclass(frozen=True)
class Condition:
    """One centering: off, mean, geometric_median or whiten.

    Attributes:
        gamma: of what the encoder multiplies.
        dead_pct_topk: never among a token's k largest positive pre-activations; includes `dead_pct_relu`.
        dead_pct_relu: never positive.
        always_on: features that are selected on more than 90 % of the tokens.
        n_tokens: on which fates were counted. Once every feature is alive, counting stops.
        unseen: what more tokens would change.
        fates: a `Fate` for each feature, int8 [n_features].
        active: share of the tokens on which each feature is selected, [n_features].
    """

    gamma: float
    dead_pct_topk: float
    dead_pct_relu: float
    always_on: int
    n_tokens: int
    unseen: Unseen
    fates: NDArray[np.int8]
    active: NDArray[np.float64]


def condition_of(counter: FateCounter, gamma: float) -> Condition:
    active = counter.selected.double() / counter.n_tokens
    return Condition(
        gamma=gamma,
        dead_pct_topk=counter.dead_pct_topk,
        dead_pct_relu=counter.dead_pct_relu,
        always_on=int((active > ALWAYS_ON).sum()),
        n_tokens=counter.n_tokens,
        unseen=unseen(counter),
        fates=counter.fates.cpu().numpy(),
        active=active.cpu().numpy(),
    )
