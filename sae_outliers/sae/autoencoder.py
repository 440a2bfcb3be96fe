"""What every SAE type shares: its weights, their initialisation, and the form in which they are saved."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class StepOutput:
    """One training batch: the loss to minimise, and which features were active in it (bool [n_features])."""

    loss: Tensor
    fired: Tensor


class SparseAutoencoder(nn.Module, ABC):
    """x̂ = features @ W_dec + b_dec, with features from the pre-activations (x - b_dec) @ W_enc + b_enc.

    At initialisation the decoder directions are random with unit norm, the encoder is the decoder transposed, and
    all biases are 0 (arXiv 2605.31518). The same seed gives the same weights on every device.

    Attributes:
        W_enc: [d_model, n_features].  b_enc: [n_features].
        W_dec: [n_features, d_model].  b_dec: [d_model].
    """

    def __init__(self, d_model: int, n_features: int, k: int, l1: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.k, self.l1 = k, l1
        directions = torch.randn(n_features, d_model, generator=torch.Generator().manual_seed(seed))
        W_dec = F.normalize(directions, dim=1)
        self.W_enc = nn.Parameter(W_dec.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    def pre_activations(self, x: Tensor) -> Tensor:
        """[tokens, n_features] from x [tokens, d_model]; call it on chunks, never on all tokens at once."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    @abstractmethod
    def decode_pre_activations(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction [tokens, d_model] and number of active features [tokens], from pre-activations."""

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction x̂, [tokens, d_model]."""
        return self.decode_pre_activations(self.pre_activations(x))[0]

    @abstractmethod
    def training_step(self, x: Tensor, scale: float) -> StepOutput:
        """Loss on a batch [tokens, d_model].

        `scale` is the root of the data's total variance: dividing by it makes the loss 1 for an SAE that predicts
        the mean, and gives `l1` the same meaning at any scale of the activations.
        """

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from each decoder row's gradient the part along the row: it would only change the row's norm."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Bring every decoder row back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))


def squared_error(x: Tensor, x_hat: Tensor, scale: float) -> Tensor:
    """Mean over tokens of ||x - x̂||² / scale²."""
    return (x - x_hat).square().sum(1).mean() / scale**2
