"""Centering: an affine map between the preprocessed activations and what the SAE sees."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_outliers.stats.moments import Moments


@dataclass(frozen=True)
class Affine:
    """z = (x - shift) @ linear, and back x = z @ inverse + shift; float32, x and z are [..., d_model].

    `linear` and `inverse` are [d_model, d_model], or None for the identity. `inverse` is the pseudo-inverse where
    `linear` is a projection.
    """

    shift: Tensor
    linear: Tensor | None = None
    inverse: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        z = x - self.shift
        return z if self.linear is None else z @ self.linear

    def undo(self, z: Tensor) -> Tensor:
        return (z if self.inverse is None else z @ self.inverse) + self.shift

    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside the SAE: `centering.shift` and, unless it is the identity, the two matrices."""
        named = {"shift": self.shift, "linear": self.linear, "inverse": self.inverse}
        return {f"centering.{name}": tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Affine":
        prefix = "centering."
        return cls(**{name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})

    def to(self, device: torch.device | str) -> "Affine":
        return Affine.from_tensors({name: t.to(device) for name, t in self.tensors().items()})


def off(m: Moments) -> Affine:
    """No change."""
    return Affine(torch.zeros_like(m.mean, dtype=torch.float32))


def on(m: Moments) -> Affine:
    """Subtract the mean of the evaluation tokens."""
    return Affine(m.mean.float())


def whiten(m: Moments) -> Affine:
    """PCA whitening: subtract the mean, rotate to the principal axes, divide each by its standard deviation.

    Eigenvalues are raised to at least 1e-6 of the largest. LayerNorm leaves one direction without any variance, and
    dividing by what rounding left there would make noise a dimension like the others.
    """
    eigenvalues, axes = torch.linalg.eigh(m.scatter / m.count)
    deviations = eigenvalues.clamp(min=1e-6 * eigenvalues[-1].item()).sqrt()
    return Affine(m.mean.float(), (axes / deviations).float().contiguous(), (axes * deviations).T.float().contiguous())


def layernorm_center(m: Moments) -> Affine:
    """Subtract the mean, and from each token its average over the dimensions (LayerNorm's own centering).

    The second part is the projection I - 11ᵀ/d. On post-LN activations it changes nothing, and this equals `on`.
    """
    d_model = len(m.mean)
    projection = torch.eye(d_model, device=m.mean.device) - 1 / d_model
    return Affine(m.mean.float(), projection, projection.clone())


# from moments, whose covariance is whole for whitening. geometric_median leaves the activations as they are: its
# config sets init.b_dec
CENTERINGS: dict[str, Callable[[Moments], Affine]] = {
    "off": off,
    "on": on,
    "geometric_median": off,
    "whiten": whiten,
    "layernorm_center": layernorm_center,
}
