"""JumpReLU SAE (Rajamanoharan et al. 2024b): a feature is active above a threshold of its own, which is learned."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.utils.options import check_number


class _Jump(torch.autograd.Function):
    """z where z > θ, else 0. To θ flows the paper's pseudo-derivative -(θ/ε) K((z - θ)/ε), K the unit rectangle."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return z.relu() * (z > theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        grad_theta = -(theta / ctx.bandwidth) * (grads[0] * _near(z, theta, ctx.bandwidth)).sum(0)
        return grads[0] * ((z > theta) & (z > 0)), grad_theta, None


class _Active(torch.autograd.Function):
    """1 where z > θ, else 0, with the pseudo-derivative -(1/ε) K((z - θ)/ε) to θ and none to z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        return None, -(grads[0] * _near(z, theta, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


def _near(z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    return (z - theta).abs() < bandwidth / 2


@SAES.register("jumprelu")
class JumpReLU(SparseAutoencoder):
    """The penalty is `sparsity` times the mean number of active features of a token.

    Thresholds and `bandwidth` (the ε of the pseudo-derivatives) are in units of scale / √d_model, the standard
    deviation of a pre-activation at initialisation where all directions of the data vary alike: a bandwidth fixed in
    the data's own units catches no pre-activations, or all of them, as the scale of the activations changes. The
    threshold itself is the parameter, not its logarithm, so that Adam moves it at the same pace everywhere.

    Attributes:
        threshold: [n_features], in those units; it starts where about k features of a token are active.
    """

    step_tensors = 4.5

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        scale: float = 1.0,
        seed: int = 0,
        sparsity: float = 0.0,
        bandwidth: float = 0.1,
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        check_number("sae.sparsity", sparsity, at_least=0)
        check_number("sae.bandwidth", bandwidth, above=0)
        self.sparsity, self.bandwidth = sparsity, bandwidth
        from scipy.special import ndtri  # 0.2 s to load, which no other type needs

        start = max(0.0, float(ndtri(1 - k / n_features))) if k < n_features else 0.0
        self.threshold = nn.Parameter(torch.full((n_features,), start))

    def options(self) -> dict[str, Any]:
        return super().options() | {"sparsity": self.sparsity, "bandwidth": self.bandwidth}

    @property
    def unit(self) -> float:
        """Return the pre-activation at which a threshold of 1 lies."""
        return self.scale / self.d_model**0.5

    def features(self, pre: Tensor) -> Tensor:
        return pre.relu() * (pre > self.threshold * self.unit)

    def training_step(self, x: Tensor) -> StepOutput:
        z = self.pre_activations(x) / self.unit
        features = _Jump.apply(z, self.threshold, self.bandwidth)
        residual = x - self.b_dec - (features * self.unit) @ self.W_dec
        active = _Active.apply(z.detach(), self.threshold, self.bandwidth)
        loss = self.squared_error(residual) + self.sparsity * active.sum(1).mean()
        return StepOutput(loss, (features > 0).any(0), residual.detach())
