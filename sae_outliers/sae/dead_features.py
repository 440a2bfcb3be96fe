"""Which features are alive, dead by TopK or dead by ReLU on the evaluation tokens, and how they align with the mean."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.results.features import Fate
from sae_outliers.sae.kernels import largest


class FateCounter:
    """Over chunks of pre-activations: how high each feature gets, and on how many tokens it is selected.

    Attributes:
        highest: float32 [n_features], the largest pre-activation of each feature on any token.
        selected: int64 [n_features], tokens on which it is > 0 and among the token's k largest.
    """

    def __init__(self, n_features: int, k: int, device: torch.device | str = "cpu") -> None:
        self.k = k
        self.n_tokens = 0
        self.highest = torch.full((n_features,), -torch.inf, device=device)
        self.selected = torch.zeros(n_features, dtype=torch.int64, device=device)

    def update(self, pre: Tensor) -> None:
        """Take in pre-activations [tokens, n_features]."""
        self.n_tokens += len(pre)
        self.highest = torch.maximum(self.highest, pre.amax(0))
        values, indices = largest(pre, self.k)
        self.selected += torch.bincount(indices[values > 0], minlength=len(self.selected))

    @property
    def fates(self) -> Tensor:
        """A `Fate` for each feature, int8 [n_features]."""
        fates = torch.full_like(self.selected, Fate.ALIVE, dtype=torch.int8)
        fates[self.selected == 0] = Fate.NEVER_SELECTED
        fates[self.highest <= 0] = Fate.NEVER_POSITIVE
        return fates

    @property
    def dead_pct_topk(self) -> float:
        """Percent of the features that are never selected, those never positive included."""
        return 100 * (self.selected == 0).double().mean().item()

    @property
    def dead_pct_relu(self) -> float:
        """Percent of the features that are never positive."""
        return 100 * (self.highest <= 0).double().mean().item()


def alignment(W_enc: Tensor, mean: Tensor) -> Tensor:
    """cos(encoder direction, μ) of each feature, [n_features], from W_enc [d_model, n_features] and mean [d_model]."""
    return F.cosine_similarity(W_enc, mean.to(W_enc)[:, None], dim=0)
