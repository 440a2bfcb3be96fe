"""What a token's activations go through before the SAE: per-token preprocessing, then centering and a scale."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.stats.moments import Moments
from sae_outliers.utils.registry import Registry

Preprocessing = Callable[[Tensor], Tensor]  # [..., d_model] to [..., d_model], each token by itself
PREPROCESSINGS = Registry[Preprocessing]("preprocessing")


@PREPROCESSINGS.register("postln")
def postln(x: Tensor) -> Tensor:
    """Apply LayerNorm over each token without affine (eps 1e-5), times sqrt(d_model): the paper's convention.

    x is [..., d_model]; the result has norm d_model.
    """
    d_model = x.shape[-1]
    return F.layer_norm(x, (d_model,), eps=1e-5) * d_model**0.5


@PREPROCESSINGS.register("raw")
def raw(x: Tensor) -> Tensor:
    """Return the activations as they are."""
    return x


@dataclass(frozen=True)
class Affine:
    """z = (x - shift) @ linear * scale, and back x = z / scale @ inverse + shift; float32, x and z are [..., d_model].

    `linear` and `inverse` are [d_model, d_model], or None for the identity. `inverse` is the pseudo-inverse where
    `linear` is a projection. `scale` is a number, or None for 1.
    """

    shift: Tensor
    linear: Tensor | None = None
    inverse: Tensor | None = None
    scale: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        z = x - self.shift
        z = z if self.linear is None else z @ self.linear
        return z if self.scale is None else z * self.scale

    def undo(self, z: Tensor) -> Tensor:
        z = z if self.scale is None else z / self.scale
        return (z if self.inverse is None else z @ self.inverse) + self.shift

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved beside the SAE: `centering.shift` and, where they are not the identity, the others."""
        named = {"shift": self.shift, "linear": self.linear, "inverse": self.inverse, "scale": self.scale}
        return {f"centering.{name}": tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Affine":
        """Return the map whose `tensors()` are among these."""
        prefix = "centering."
        return cls(**{name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})

    def to(self, device: torch.device | str) -> "Affine":
        return Affine.from_tensors({name: t.to(device) for name, t in self.tensors().items()})


# from the moments of the evaluation tokens, with their full covariance, to the map
CENTERINGS = Registry[Callable[[Moments], Affine]]("centering")


@CENTERINGS.register("off")
def off(m: Moments) -> Affine:
    """Change nothing."""
    return Affine(torch.zeros_like(m.mean, dtype=torch.float32))


@CENTERINGS.register("on")
def on(m: Moments) -> Affine:
    """Subtract the mean of the evaluation tokens."""
    return Affine(m.mean.float())


@CENTERINGS.register("geometric_median")
def geometric_median(m: Moments) -> Affine:
    """Leave the activations as they are: the config of this centering starts b_dec at their geometric median."""
    return off(m)


@CENTERINGS.register("whiten")
def whiten(m: Moments) -> Affine:
    """PCA whitening: subtract the mean, rotate to the principal axes, divide each by its standard deviation.

    Eigenvalues are raised to at least 1e-6 of the largest. LayerNorm leaves one direction without any variance, and
    dividing by what rounding left there would make noise a dimension like the others.
    """
    eigenvalues, axes = torch.linalg.eigh(m.scatter / m.count)
    deviations = eigenvalues.clamp(min=1e-6 * eigenvalues[-1].item()).sqrt()
    return Affine(m.mean.float(), (axes / deviations).float().contiguous(), (axes * deviations).T.float().contiguous())


@CENTERINGS.register("layernorm_center")
def layernorm_center(m: Moments) -> Affine:
    """Subtract the mean, and from each token its average over the dimensions (LayerNorm's own centering).

    The second part is the projection I - 11ᵀ/d. Where it changes nothing but rounding, as on post-LN activations, this
    is `on`.
    """
    d_model = len(m.mean)
    square_of_average = m.scatter.sum() / m.count / d_model**2 + m.mean.mean().square()
    if square_of_average < 1e-10 * m.square_norm / d_model:
        return on(m)
    projection = torch.eye(d_model, device=m.mean.device) - 1 / d_model
    return Affine(m.mean.float(), projection, projection.clone())


# from the moments of the evaluation tokens, before any centering, to the factor of the SAE's inputs; None for 1
INPUT_SCALES = Registry[Callable[[Moments], Tensor | None]]("train.input_scale")


@INPUT_SCALES.register("none")
def unscaled(m: Moments) -> Tensor | None:
    """Leave the tokens at the scale of the preprocessing: after the paper's, a token has norm d_model."""
    return None


@INPUT_SCALES.register("sqrt_d")
def sqrt_d(m: Moments) -> Tensor | None:
    """Give tokens the norm sqrt(d_model), by their root mean square, as SAELens' expected average does by the mean."""
    return (len(m.mean) / m.square_norm).sqrt().float()


@INPUT_SCALES.register("unit")
def unit(m: Moments) -> Tensor | None:
    """Give tokens a mean squared norm of 1, as dictionary_learning does."""
    return m.square_norm.rsqrt().float()
