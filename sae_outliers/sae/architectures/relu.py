"""ReLU SAE with an L1 penalty: every positive pre-activation is a feature; sparsity is learned."""

from typing import Any

from torch import Tensor

from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.utils.options import check_number


@SAES.register("relu", "relu_april")
class ReLU(SparseAutoencoder):
    """The penalty is `sparsity` times the mean over tokens of Σ f_i / scale, at unit-norm decoder rows.

    With `decoder_norm_weighted` it is Σ f_i ||W_dec_i|| and the rows' norms are free, as in Anthropic's update of
    April 2024.
    """

    step_tensors = 3.3

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        scale: float = 1.0,
        seed: int = 0,
        sparsity: float = 0.0,
        decoder_norm_weighted: bool = False,
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        check_number("sae.sparsity", sparsity, at_least=0)
        self.sparsity, self.decoder_norm_weighted = sparsity, decoder_norm_weighted
        self.unit_norm_decoder = not decoder_norm_weighted

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "sparsity": self.sparsity,
            "decoder_norm_weighted": self.decoder_norm_weighted,
        }

    def features(self, pre: Tensor) -> Tensor:
        return pre.relu()

    def training_step(self, x: Tensor) -> StepOutput:
        features = self.pre_activations(x).relu()
        residual = x - self.b_dec - features @ self.W_dec
        weighted = features @ self.W_dec.norm(dim=1) if self.decoder_norm_weighted else features.sum(1)
        loss = self.squared_error(residual) + self.sparsity * weighted.mean() / self.scale
        return StepOutput(loss, (features > 0).any(0), residual.detach())
