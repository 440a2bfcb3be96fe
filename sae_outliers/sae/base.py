"""What every SAE type shares: its weights, and what the training loop and the measurements ask of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """One training batch: the loss to minimise, which features were active in it, and what was left unexplained."""

    loss: Tensor
    fired: Tensor  # bool [n_features]
    residual: Tensor  # x - x̂ [tokens, d_model], without gradient


class SparseAutoencoder(nn.Module, ABC):
    """x̂ = features @ W_dec + b_dec, with features from the pre-activations (x - b_dec) @ W_enc + b_enc.

    At initialisation the decoder directions are random with unit norm, the encoder is the decoder transposed, and
    all biases are 0 (arXiv 2605.31518). The same seed gives the same weights on every device.

    Attributes:
        W_enc: [d_model, n_features], held with a feature's weights side by side.  b_enc: [n_features].
        W_dec: [n_features, d_model].  b_dec: [d_model].
        k: features per token that a type with a fixed number of them selects; for other types only the k of the
            dead-by-TopK measurement.
        scale: root of the data's total variance. Dividing by it makes the loss 1 for an SAE that predicts the mean,
            and gives penalties and thresholds the same meaning at any scale of the activations.
        unit_norm_decoder: whether training keeps the decoder rows at unit norm.
    """

    unit_norm_decoder = True

    def __init__(self, d_model: int, n_features: int, k: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.k, self.scale = k, scale
        directions = torch.randn(n_features, d_model, generator=torch.Generator().manual_seed(seed))
        self.W_enc = nn.Parameter(torch.empty(n_features, d_model).T)
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.W_dec = nn.Parameter(torch.empty(n_features, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.set_directions(directions)

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        """Decoder rows along `directions` [n_features, d_model], at unit norm, and the encoder their transpose."""
        self.W_dec.copy_(F.normalize(directions, dim=1))
        self.W_enc.copy_(self.W_dec.T)

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    def options(self) -> dict[str, Any]:
        """The arguments, besides the sizes, that make an SAE of the same kind."""
        return {"k": self.k, "scale": self.scale}

    def pre_activations(self, x: Tensor) -> Tensor:
        """[tokens, n_features] from x [tokens, d_model]; call it on chunks, never on all tokens at once."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    @abstractmethod
    def features(self, pre: Tensor) -> Tensor:
        """The features of each token, [tokens, n_features], from its pre-activations."""

    def reconstruct(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """From pre-activations, x̂ [tokens, d_model], and on how many tokens each feature is active, [n_features]."""
        features = self.features(pre)
        return features @ self.W_dec + self.b_dec, (features > 0).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction x̂, [tokens, d_model]."""
        return self.reconstruct(self.pre_activations(x))[0]

    @abstractmethod
    def training_step(self, x: Tensor) -> StepOutput:
        """Loss on a batch [tokens, d_model]."""

    def squared_error(self, residual: Tensor) -> Tensor:
        """Mean over tokens of ||x - x̂||² / scale², from the residuals [tokens, d_model]."""
        return residual.square().sum(1).mean() / self.scale**2

    @torch.no_grad()
    def shift_pre_activations(self, shift: Tensor) -> None:
        """Add `shift` [n_features] to (x - b_dec) @ W_enc, by way of the biases."""
        self.b_enc.add_(shift)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from each decoder row's gradient the part along the row: it would only change the row's norm."""
        if self.W_dec.grad is not None:
            along = torch.einsum("nd,nd->n", self.W_dec.grad, self.W_dec)[:, None]
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring every decoder row back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
