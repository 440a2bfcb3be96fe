"""Closed forms for feature death at initialisation, from γ alone (arXiv 2605.31518), and a law of how long b_dec takes.

A random unit direction has a projected mean ~ N(0, ||μ||²/d) and a projected spread ≈ ||σ||/√d. In units of the
spread, feature j's pre-activation on token i is then m_j + ε_ij with m_j ~ N(0, γ²) and ε_ij ~ N(0, 1), and the
largest ε of n_eval tokens is about C = Φ⁻¹(1 - 1/n_eval). All functions are vectorised over γ and return
probabilities in [0, 1].
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri  # Φ and Φ⁻¹; scipy.stats has them too, and takes 0.4 s to load

Probability = NDArray[np.float64]


def _reach(n_eval: int) -> float:
    """Return C: how many spreads above its mean a feature gets on its best of `n_eval` tokens."""
    return float(-ndtri(1 / n_eval))


def _threshold(n_features: int, k: int) -> float:
    """Return t_k: how many standard deviations above the mean the k-th largest of `n_features` normal values lies."""
    return float(-ndtri(k / n_features))


def dead_by_relu(gamma: ArrayLike, n_eval: int) -> Probability:
    """Return P(m_j + C < 0) = Φ(-C/γ): the pre-activation is positive on no evaluation token. γ [...] -> [...]."""
    with np.errstate(divide="ignore"):
        return ndtr(-_reach(n_eval) / np.asarray(gamma, dtype=np.float64))


def dead_by_topk(gamma: ArrayLike, n_eval: int, n_features: int, k: int) -> Probability:
    """Return P(m_j + C < t_k γ) = Φ(t_k - C/γ): the paper's form, its top-k threshold that of the means m_j alone.

    γ [...] -> [...].
    """
    with np.errstate(divide="ignore"):
        return ndtr(_threshold(n_features, k) - _reach(n_eval) / np.asarray(gamma, dtype=np.float64))


def dead_by_topk_small_gamma(gamma: ArrayLike, n_eval: int, n_features: int, k: int) -> Probability:
    """Return P(m_j + C < t_k √(1+γ²)): the threshold of m_j + ε_ij, which matters where γ is not large.

    This form is ours; it tends to the paper's as γ grows. γ [...] -> [...].
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    threshold = _threshold(n_features, k) * np.sqrt(1 + gamma**2)
    with np.errstate(divide="ignore"):
        return ndtr((threshold - _reach(n_eval)) / gamma)


# Fitted by analysis.clock.fit_law to experiment=recovery_clock and recovery_clock_high: results/recovery/clock/tables
BIAS_HALF_TIME = {
    "factor": 10.5,
    "offset_max": 0.632,
    "lr": -0.89,
    "gamma": 0.504,
    "batch_size": 0.0842,
    "n_features": 0.0212,
}
BIAS_HALF_TIME_LR = (3e-4, 3e-3)  # between which learning rates they lie


def bias_half_time(
    offset_max: ArrayLike, lr: ArrayLike, gamma: ArrayLike, batch_size: ArrayLike, n_features: ArrayLike
) -> NDArray[np.float64]:
    """Return after how many steps of Adam b_dec, left to itself from 0, holds half of the mean.

    All arguments [...] -> [...]. An empirical law, ours: a product of powers, fitted to TopK SAEs of 128 to 2,048
    features (k = 8) on synthetic activations of width 64, batches of 64 to 512, γ from 1 to 40, learning rates of 3e-4
    to 3e-3 without decay, and scales at which max |μ_i - b_dec_i| is 0.4 to 20. On the runs that it was not fitted to
    it is off by a factor of 1.19 in the median and 1.57 at most; of sixteen runs on layers of MiniLM, SmolLM2 and a ViT
    it said 1.1 to 2.2 times the steps taken. Beyond 100,000 steps it is too short: 0.7 of them up to 200,000, 0.5 of
    330,000 and 0.4 of a million. Elsewhere it is an extrapolation: 2.6 times the steps at γ = 0.5. The number of
    features makes no difference, and the batch size little.

    Args:
        offset_max: max |μ_i - b_dec_i| of what the SAE is given, in its units (the record's `offset_max`).
        lr: the learning rate of b_dec, that of the other weights.
        gamma: of what the SAE is given.
        batch_size: tokens a step.
        n_features: of the SAE.
    """
    quantities = {
        "offset_max": offset_max,
        "lr": lr,
        "gamma": gamma,
        "batch_size": batch_size,
        "n_features": n_features,
    }
    powers = (np.asarray(value, np.float64) ** BIAS_HALF_TIME[name] for name, value in quantities.items())
    return np.asarray(BIAS_HALF_TIME["factor"] * math.prod(powers))
