"""TopK SAE (Gao et al. 2024): the k largest positive pre-activations of each token are its features."""

import torch
from torch import Tensor

from sae_outliers.sae.autoencoder import SparseAutoencoder, StepOutput, squared_error
from sae_outliers.sae.kernels import decode, topk_encode


class TopK(SparseAutoencoder):
    def decode_pre_activations(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = pre.topk(self.k, dim=1, sorted=False)
        values = values.relu()
        return decode(values, indices, self.W_dec) + self.b_dec, (values > 0).sum(1)

    def training_step(self, x: Tensor, scale: float) -> StepOutput:
        values, indices = topk_encode(x, self.W_enc, self.b_enc, self.b_dec, self.k)
        loss = squared_error(x, decode(values, indices, self.W_dec) + self.b_dec, scale)
        fired = torch.zeros(self.n_features, dtype=torch.bool, device=x.device)
        fired[indices[values > 0]] = True
        return StepOutput(loss, fired)
