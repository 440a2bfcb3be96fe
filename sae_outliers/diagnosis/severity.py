"""How severe a layer's outliers are: γ three ways, spectrum, and what its outlier dimensions carry."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_outliers.stats.moments import Moments, effective_rank, moments, outlier_dims
from sae_outliers.stats.transforms import Preprocessing, postln, raw

CHUNK = 4096  # tokens at a time


@dataclass(frozen=True)
class Severity:
    """A layer's tokens in figures.

    Attributes:
        gamma: ‖μ‖/‖σ‖ of the tokens as the SAE is given them.
        gamma_postln, gamma_raw: after LayerNorm without affine, and as the activations are.
        effective_rank: exp(entropy) of the covariance's spectrum, of the tokens as the SAE is given them.
        spectrum: eigenvalues of that covariance, largest first, [d_model].
        mean, std: μ and σ of each dimension, [d_model].
        outlier_dims: the dimensions with the largest |μ|/σ, a row each: dimension, mean, std, ratio, and what they
            carry, in percent of ‖μ‖² and of ‖σ‖².
    """

    gamma: float
    gamma_postln: float
    gamma_raw: float
    effective_rank: float
    spectrum: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    outlier_dims: pd.DataFrame


def chunks(tokens: Tensor, preprocess: Preprocessing, device: torch.device) -> Iterator[Tensor]:
    """Yield tokens [n, d_model] in chunks on the device, preprocessed."""
    return (preprocess(chunk.to(device)) for chunk in tokens.split(CHUNK))


def severity_of(tokens: Tensor, preprocess: Preprocessing, device: torch.device) -> tuple[Severity, Moments]:
    """Return the figures of tokens [n, d_model], and the moments of the preprocessed ones with their covariance.

    Raises:
        ValueError: no dimension varies, so that γ is not defined.
    """
    m = moments(chunks(tokens, preprocess, device), covariance=True)
    ln, plain = (m if other is preprocess else moments(chunks(tokens, other, device)) for other in (postln, raw))
    spectrum = torch.linalg.eigvalsh(m.scatter / m.count).clamp(min=0).flip(0)
    return Severity(
        gamma=m.gamma,
        gamma_postln=ln.gamma,
        gamma_raw=plain.gamma,
        effective_rank=effective_rank(m.scatter),
        spectrum=spectrum.cpu().numpy(),
        mean=m.mean.cpu().numpy(),
        std=m.variance.sqrt().cpu().numpy(),
        outlier_dims=_outliers(m),
    ), m


def _outliers(m: Moments) -> pd.DataFrame:
    of_mean, of_variance = m.mean.square(), m.variance
    total = max(of_mean.sum().item(), torch.finfo(torch.float64).tiny)  # the mean may be 0
    rows = [
        {
            "dimension": one.index,
            "mean": m.mean[one.index].item(),
            "std": m.variance[one.index].sqrt().item(),
            "ratio": one.ratio,
            "pct_of_mean": 100 * of_mean[one.index].item() / total,
            "pct_of_variance": 100 * (of_variance[one.index] / of_variance.sum()).item(),
        }
        for one in outlier_dims(m)
    ]
    return pd.DataFrame(rows)
