"""ReLU SAE with an L1 penalty: every positive pre-activation is a feature; sparsity is learned."""

from torch import Tensor

from sae_outliers.sae.autoencoder import SparseAutoencoder, StepOutput, squared_error


class ReLU(SparseAutoencoder):
    def decode_pre_activations(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        features = pre.relu()
        return features @ self.W_dec + self.b_dec, (features > 0).sum(1)

    def training_step(self, x: Tensor, scale: float) -> StepOutput:
        features = self.pre_activations(x).relu()
        error = squared_error(x, features @ self.W_dec + self.b_dec, scale)
        sparsity = features.sum(1).mean() / scale  # decoder rows have unit norm, so this is the L1 of the code
        return StepOutput(error + self.l1 * sparsity, (features > 0).any(0))
