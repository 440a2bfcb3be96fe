"""Fates from a shared product against those of each SAE by itself."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import FateCounter, count_fates, fate_counter
from sae_outliers.sae.shared_product import SharedProduct
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import CENTERINGS, Affine, postln

D_MODEL, N_FEATURES, K = 32, 512, 8


def tokens(gamma: float, n: int = 3000) -> Tensor:
    """Normal tokens with two outlier dimensions, and a mean of this severity."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, D_MODEL, generator=rng)
    mean = torch.randn(D_MODEL, generator=rng)
    mean[:2] *= 10
    return x + gamma * D_MODEL**0.5 * mean / mean.norm()


def sae_with(b_dec: Tensor | None = None, b_enc: float = 0.0) -> TopK:
    sae = TopK(D_MODEL, N_FEATURES, k=K, seed=0)
    with torch.no_grad():
        sae.b_enc.fill_(b_enc)
        if b_dec is not None:
            sae.b_dec.copy_(b_dec)
    return sae


@pytest.mark.parametrize("gamma", [0.5, 2.0, 50.0])
def test_fates_are_those_of_each_by_itself(gamma: float) -> None:
    x = tokens(gamma)
    mean, spread = x.mean(0), x.std(0, correction=0).norm().item()
    zero = torch.zeros(D_MODEL)
    cases = [
        (sae_with(), Affine(zero)),
        (sae_with(), Affine(mean)),
        (sae_with(b_dec=x.median(0).values), Affine(zero)),
        (sae_with(b_dec=0.1 * mean, b_enc=-0.3), Affine(0.9 * mean, scale=torch.tensor(0.2))),
        (sae_with(), Affine(-3 * mean)),  # as planting a higher γ does
    ]
    product = SharedProduct(cases[0][0].W_enc, mean)
    counters = [fate_counter(sae) for sae, _ in cases]
    for counter, (sae, centering) in zip(counters, cases, strict=True):
        assert product.shares(sae, centering)
        product.add(counter, sae, centering)
    for chunk in x.split(700):
        product.update(chunk)
    for counter, (sae, centering) in zip(counters, cases, strict=True):
        exact = FateCounter(N_FEATURES, K)
        pre = (centering.apply(x.double()) - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
        exact.highest = exact.highest.double()
        exact.update(pre.detach())
        scale = 1.0 if centering.scale is None else centering.scale.item()
        assert (counter.highest - exact.highest).abs().max() < 1e-5 * spread * scale
        assert (counter.fates != exact.fates).sum() <= 1
        assert (counter.selected - exact.selected).abs().sum() <= 4


def test_at_a_high_gamma_it_keeps_digits_that_a_plain_product_loses() -> None:
    x = tokens(1e4)
    sae = sae_with()
    plain, shared = fate_counter(sae), fate_counter(sae)
    count_fates(plain, sae, Affine(torch.zeros(D_MODEL)), [x])
    product = SharedProduct(sae.W_enc, x.mean(0))
    product.add(shared, sae, Affine(torch.zeros(D_MODEL)))
    product.update(x)
    exact = (x.double() @ sae.W_enc.double()).amax(0)
    assert (shared.highest - exact).abs().max() < (plain.highest - exact).abs().max()


def test_another_encoder_or_a_rotation_does_not_share() -> None:
    product = SharedProduct(sae_with().W_enc, torch.zeros(D_MODEL))
    shift = Affine(torch.ones(D_MODEL))
    assert product.shares(sae_with(), shift)
    assert not product.shares(TopK(D_MODEL, N_FEATURES, k=K, seed=1), shift)
    assert not product.shares(sae_with(), replace(shift, linear=torch.eye(D_MODEL)))


def test_centering_like_layernorm_is_a_shift_where_tokens_are_layernormed_and_only_there() -> None:
    x = tokens(2.0)
    for preprocessed, is_shift in ((postln(x), True), (x, False)):
        m = moments([preprocessed], covariance=True)
        found = CENTERINGS["layernorm_center"](m)
        assert (found.linear is None) == is_shift
        z = found.apply(preprocessed)
        expected = preprocessed - m.mean.float()
        torch.testing.assert_close(z, expected - expected.mean(1, keepdim=True), atol=1e-4, rtol=1e-4)
