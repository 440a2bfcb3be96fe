"""Gated SAE (Rajamanoharan et al. 2024a): half of the encoder says which features are active, half how much."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.utils.options import check_number


@SAES.register("gated")
class Gated(SparseAutoencoder):
    """The pre-activations are the gate's, π = (x - b_dec) @ W_enc + b_enc; a feature is active where π > 0.

    Its magnitude is relu((x - b_dec) @ W_enc * exp(r_mag) + b_mag). The step function has no gradient, so the gate
    learns from `sparsity` times the mean over tokens of Σ relu(π) / scale, and from an auxiliary reconstruction by
    relu(π) through a decoder without gradient.

    Attributes:
        r_mag, b_mag: [n_features].
    """

    def __init__(
        self, d_model: int, n_features: int, k: int, scale: float = 1.0, seed: int = 0, sparsity: float = 0.0
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        check_number("sae.sparsity", sparsity, at_least=0)
        self.sparsity = sparsity
        self.r_mag = nn.Parameter(torch.zeros(n_features))
        self.b_mag = nn.Parameter(torch.zeros(n_features))

    def options(self) -> dict[str, Any]:
        return super().options() | {"sparsity": self.sparsity}

    def features(self, pre: Tensor) -> Tensor:
        magnitude = (pre - self.b_enc) * self.r_mag.exp() + self.b_mag
        return magnitude.relu() * (pre > 0)

    def training_step(self, x: Tensor) -> StepOutput:
        gate = self.pre_activations(x)
        features = self.features(gate)
        residual = x - self.b_dec - features @ self.W_dec
        open_gate = gate.relu()
        by_gate = x - self.b_dec.detach() - open_gate @ self.W_dec.detach()
        penalty = self.sparsity * open_gate.sum(1).mean() / self.scale
        loss = self.squared_error(residual) + self.squared_error(by_gate) + penalty
        return StepOutput(loss, (features > 0).any(0), residual.detach())

    @torch.no_grad()
    def shift_pre_activations(self, shift: Tensor) -> None:
        super().shift_pre_activations(shift)
        self.b_mag.add_(shift * self.r_mag.exp())
