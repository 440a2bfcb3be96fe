"""Random activations of a given severity, at unit scale."""

import torch
from torch import Tensor


class Activations:
    """Normal tokens: variances fall over the dimensions as i^-decay and average 1, their mean is γ √d_model long."""

    def __init__(self, d_model: int, gamma: float = 1.0, decay: float = 0.0, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        variance = torch.arange(1, d_model + 1) ** -decay
        self.deviation = (variance / variance.mean()).sqrt()
        direction = torch.randn(d_model, generator=self.random)
        self.mean = direction / direction.norm() * gamma * d_model**0.5

    def draw(self, tokens: int, device: torch.device) -> Tensor:
        """[tokens, d_model]; other tokens at each call."""
        x = torch.randn(tokens, len(self.mean), generator=self.random)
        return x.mul_(self.deviation).add_(self.mean).to(device)
