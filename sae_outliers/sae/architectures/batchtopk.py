"""BatchTopK SAE (Bussmann et al. 2024): the k * tokens largest pre-activations of a training batch are its features.

A token may have more features than k or fewer. At inference, where no batch is to be trusted, a feature is active
above a threshold: the running mean of the least value that a batch selected.
"""

import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import SPARSE_STEP_COST, sparse_step
from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.sae.kernels import Code, choose_batch_topk, largest

EMA_DECAY = 0.99  # of the threshold's running mean, per step


@SAES.register("batchtopk")
class BatchTopK(SparseAutoencoder):
    """Until the first training step there is no threshold (-1), and each token's k largest are its features."""

    step_cost, step_tensors = SPARSE_STEP_COST, 0
    threshold: Tensor

    def __init__(self, d_model: int, n_features: int, k: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        self.register_buffer("threshold", torch.tensor(-1.0))

    def features(self, pre: Tensor) -> Tensor:
        if self.threshold < 0:
            return pre.relu() * (pre >= largest(pre, self.k)[0].amin(1, keepdim=True))
        return pre.relu() * (pre > self.threshold)

    def choose(self, x: Tensor) -> Code:
        """Choose the k * tokens largest pre-activations of x [tokens, d_model], and move the threshold on."""
        code = choose_batch_topk(x - self.b_dec, self.W_enc, self.b_enc, self.k)
        least = torch.where(code.values > 0, code.values, torch.inf).amin()
        moved = torch.where(self.threshold < 0, least, torch.lerp(least, self.threshold, EMA_DECAY))
        self.threshold.copy_(torch.where(least.isfinite(), moved, self.threshold))  # nothing was positive: no least
        return code

    def training_step(self, x: Tensor) -> StepOutput:
        return sparse_step(self, x, self.choose(x))
