import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import entropy, kurtosis

from sae_outliers.stats.kurtosis import Kurtosis
from sae_outliers.stats.moments import effective_rank, geometric_median, moments, outlier_dims


def outlier_tokens(gamma: float, n: int = 3000, d: int = 16) -> torch.Tensor:
    x = np.random.default_rng(0).normal(size=(n, d))
    x -= x.mean(0)
    x /= np.sqrt((x**2).mean(0))
    return torch.from_numpy(x + gamma * np.sqrt(d) * np.eye(d)[3]).float()


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 1000, 5000])
def test_moments_agree_with_numpy_however_the_tokens_are_chunked(chunk: int, covariance: bool) -> None:
    x = outlier_tokens(2.0)
    m = moments(x.split(chunk), covariance)
    reference = x.double().numpy()
    np.testing.assert_allclose(m.mean, reference.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(m.variance, reference.var(0), rtol=1e-10)
    if covariance:
        np.testing.assert_allclose(m.scatter / m.count, np.cov(reference.T, bias=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 50.0, 1000.0])
def test_gamma_of_a_constructed_mean_holds_where_the_naive_float32_variance_does_not(gamma: float) -> None:
    x = outlier_tokens(gamma)
    assert moments(x.split(100)).gamma == pytest.approx(gamma, rel=1e-5)


def test_gamma_does_not_depend_on_scale_and_empty_chunks_count_for_nothing() -> None:
    x = outlier_tokens(3.0)
    assert moments([x[:0], 100 * x, x[:0]]).gamma == pytest.approx(moments([x]).gamma, rel=1e-6)


def test_gamma_is_refused_where_nothing_varies() -> None:
    with pytest.raises(ValueError, match="none of the dimensions varies over 10 tokens"):
        _ = moments([torch.ones(10, 4)]).gamma


def test_effective_rank_counts_equal_directions_and_follows_scipys_entropy() -> None:
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0]))) == pytest.approx(3)
    eigenvalues = np.array([5.0, 1.0, 0.2, 0.01])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    covariance = torch.from_numpy(rotation * eigenvalues @ rotation.T)
    assert effective_rank(covariance) == pytest.approx(np.exp(entropy(eigenvalues)))


def test_outlier_dims_name_the_dimension_whose_mean_is_large_and_skip_constant_ones() -> None:
    x = outlier_tokens(2.0)
    x[:, 7] = 5.0
    found = outlier_dims(moments([x]), n=3)
    assert found[0].index == 3
    assert found[0].ratio == pytest.approx(2.0 * 4, rel=1e-4)
    assert 7 not in [dim.index for dim in found]


def test_geometric_median_minimises_the_summed_distance() -> None:
    x = torch.from_numpy(np.random.default_rng(1).exponential(size=(400, 3))).float()
    median = geometric_median(lambda: iter(x.split(60)), x.mean(0), tolerance=1e-10, max_passes=2000)
    best = minimize(lambda p: np.linalg.norm(x.double().numpy() - p, axis=1).sum(), x.mean(0).double().numpy())
    np.testing.assert_allclose(median, best.x, atol=1e-4)


def test_geometric_median_survives_a_token_at_the_starting_point_and_ignores_an_outlier_token() -> None:
    x = torch.tensor([[0.0, 0], [0, 1], [0, -1], [1, 0], [-1, 0], [1e6, 0]])
    median = geometric_median(lambda: iter([x]), torch.zeros(2))
    assert median.norm() < 0.5


def test_effective_rank_decomposes_a_covariance_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decompose = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: calls.append(1) or decompose(matrix))
    covariance = torch.eye(8, dtype=torch.float64)
    assert effective_rank(covariance) == effective_rank(covariance) == pytest.approx(8)
    assert len(calls) == 1
    covariance[4:] = 0
    assert effective_rank(covariance) == pytest.approx(4)
    assert effective_rank(covariance.clone()) == pytest.approx(4)
    assert len(calls) == 3
    with torch.inference_mode():
        assert effective_rank(torch.eye(8)) == pytest.approx(8)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_excess_kurtosis_is_scipys_however_the_tokens_are_chunked(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=1000), rng.laplace(size=1000) + 50, rng.exponential(size=1000), np.ones(1000)], 1)
    found = Kurtosis()
    for part in torch.from_numpy(x).split(chunk):
        found.update(part)
    found.update(torch.zeros(0, 4))
    np.testing.assert_allclose(found.excess(), kurtosis(x[:, :3]), rtol=1e-9)  # the last does not vary
