"""The closed forms against simulation of the model that they are derived from, and against the real thing."""

import numpy as np
import pytest
import torch

from sae_outliers.sae.evaluation import FateCounter
from sae_outliers.stats import theory

N_EVAL, N_FEATURES, K = 2000, 4096, 32


def measured(gamma: float) -> FateCounter:
    """Random unit directions on isotropic Gaussian tokens whose mean has the given severity."""
    rng, d = torch.Generator().manual_seed(0), 512
    x = torch.randn(N_EVAL, d, generator=rng) + gamma * torch.nn.functional.normalize(torch.ones(d), dim=0) * d**0.5
    W = torch.nn.functional.normalize(torch.randn(N_FEATURES, d, generator=rng), dim=1)
    counter = FateCounter(N_FEATURES, K)
    for chunk in x.split(500):
        counter.update(chunk @ W.T)
    return counter


@pytest.mark.parametrize("gamma", [1.0, 3.0, 10.0, 50.0])
def test_closed_forms_predict_death_on_isotropic_tokens(gamma: float) -> None:
    counter = measured(gamma)
    assert 100 * theory.dead_by_relu(gamma, N_EVAL) == pytest.approx(counter.dead_pct_relu, abs=1.5)
    small = 100 * theory.dead_by_topk_small_gamma(gamma, N_EVAL, N_FEATURES, K)
    assert small == pytest.approx(counter.dead_pct_topk, abs=8)
    if gamma >= 3:
        paper = 100 * theory.dead_by_topk(gamma, N_EVAL, N_FEATURES, K)
        assert paper == pytest.approx(counter.dead_pct_topk, abs=6)


def test_relu_form_is_the_probability_that_a_feature_with_a_normal_mean_never_reaches_zero() -> None:
    rng, gamma = np.random.default_rng(0), 4.0
    best = np.array([rng.normal(size=N_EVAL).max() for _ in range(4000)])
    dead = (gamma * rng.normal(size=4000) + best < 0).mean()
    assert theory.dead_by_relu(gamma, N_EVAL) == pytest.approx(dead, abs=0.02)


def test_small_gamma_form_tends_to_the_papers_as_gamma_grows_and_is_above_it() -> None:
    gamma = np.array([0.5, 1, 3, 30, 300])
    paper = theory.dead_by_topk(gamma, 100_000, 8192, 64)
    ours = theory.dead_by_topk_small_gamma(gamma, 100_000, 8192, 64)
    assert (ours >= paper).all()
    assert ours[-1] == pytest.approx(paper[-1], abs=1e-4)


def test_nothing_dies_without_a_mean_and_half_or_nearly_all_do_with_a_huge_one() -> None:
    assert theory.dead_by_relu(0.0, 1000) == 0
    assert theory.dead_by_topk(0.0, 1000, 8192, 64) == 0
    assert theory.dead_by_relu(1e9, 1000) == pytest.approx(0.5)
    assert theory.dead_by_topk(1e9, 1000, 8192, 64) == pytest.approx(1 - 64 / 8192)


def test_bias_half_time_is_that_of_trained_runs_and_proportional_to_what_adam_has_to_go() -> None:
    """Adam moves a coordinate by at most lr a step, so half of the largest one takes at least half of the ratio."""
    gamma = np.array([1.0, 2.0, 5.0])
    steps = theory.bias_half_time(gamma / 2, 1e-3, gamma, 256, 512)
    assert steps.shape == (3,)
    assert (steps > 0.5 * gamma / 2 / 1e-3).all()
