"""GroupMax SAE (EleutherAI's sparsify): of each of k groups of neighbouring features, the largest pre-activation."""

import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import SPARSE_STEP_COST, sparse_step
from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.sae.kernels import choose_group_max


@SAES.register("groupmax")
class GroupMax(SparseAutoencoder):
    """Raises ValueError unless k divides n_features."""

    step_cost, step_tensors = SPARSE_STEP_COST, 0

    def __init__(self, d_model: int, n_features: int, k: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        if n_features % k:
            raise ValueError(f"sae.k={k} groups do not divide sae.n_features={n_features}: choose a divisor")

    def features(self, pre: Tensor) -> Tensor:
        groups = pre.view(len(pre), self.k, -1)
        values, argmax = groups.max(2, keepdim=True)
        return torch.zeros_like(groups).scatter_(2, argmax, values.relu()).view_as(pre)

    def training_step(self, x: Tensor) -> StepOutput:
        return sparse_step(self, x, choose_group_max(x - self.b_dec, self.W_enc, self.b_enc, self.k))
