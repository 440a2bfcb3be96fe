import numpy as np
import pytest
import torch

from sae_outliers.sae.io import fold, load_sae, save_sae
from sae_outliers.stats.centering import CENTERINGS, Affine
from sae_outliers.stats.moments import moments
from sae_outliers.stats.preprocessing import postln
from tests.test_sae import TYPES, trained_like

D = 24


@pytest.fixture
def tokens() -> torch.Tensor:
    """Correlated tokens with outlier dimensions, as the SAE sees them under the paper's preprocessing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, D)) @ rng.normal(size=(D, D)) + 20 * (np.arange(D) == 5)
    return postln(torch.from_numpy(x).float())


def test_postln_is_layernorm_without_affine_times_sqrt_d() -> None:
    x = torch.randn(10, 64) * 3 + 1
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt() * 8
    torch.testing.assert_close(postln(x), expected)


@pytest.mark.parametrize("name", CENTERINGS)
def test_undo_takes_apply_back(name: str, tokens: torch.Tensor) -> None:
    centering = CENTERINGS[name](moments([tokens], covariance=True))
    torch.testing.assert_close(centering.undo(centering.apply(tokens)), tokens, rtol=1e-4, atol=1e-3)


def test_layernorm_center_removes_each_tokens_average_over_raw_dimensions() -> None:
    x = torch.randn(500, D) + 3 * torch.randn(500, 1)
    z = CENTERINGS["layernorm_center"](moments([x], covariance=True)).apply(x)
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["on", "whiten", "layernorm_center"])
def test_centered_tokens_have_no_mean_left(name: str, tokens: torch.Tensor) -> None:
    z = CENTERINGS[name](moments([tokens], covariance=True)).apply(tokens)
    assert moments([tokens]).gamma > 0.5
    assert moments([z]).gamma < 1e-5


def test_whitened_tokens_have_the_identity_as_covariance_but_for_the_direction_that_layernorm_empties(
    tokens: torch.Tensor,
) -> None:
    z = CENTERINGS["whiten"](moments([tokens], covariance=True)).apply(tokens)
    eigenvalues = np.linalg.eigvalsh(np.cov(z.double().numpy().T, bias=True))
    assert eigenvalues[0] < 1e-3
    np.testing.assert_allclose(eigenvalues[1:], 1, atol=1e-3)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CENTERINGS)
def test_folding_gives_the_same_features_and_reconstruction(name: str, kind: str, tokens: torch.Tensor) -> None:
    centering = CENTERINGS[name](moments([tokens], covariance=True))
    sae = trained_like(kind, D, 200, k=8).float()
    folded = fold(sae, centering)
    z = centering.apply(tokens)
    pre, expected = folded.pre_activations(tokens), sae.pre_activations(z)
    assert (pre - expected).norm() < 1e-5 * expected.norm()
    x_hat, expected = folded(tokens), centering.undo(sae(z))
    errors = (x_hat - expected).norm(dim=1) / expected.norm(dim=1)
    assert (errors > 1e-4).sum() <= 3  # a feature just at its threshold may go either way


@pytest.mark.parametrize("kind", TYPES)
def test_sae_and_centering_come_back_from_their_file(kind: str, tokens: torch.Tensor, tmp_path) -> None:  # type: ignore[no-untyped-def]
    centering = CENTERINGS["whiten"](moments([tokens], covariance=True))
    sae = trained_like(kind, D, 200, k=8).float()
    save_sae(tmp_path / "sae.safetensors", sae, centering, {"gamma": 1.0})
    loaded, loaded_centering = load_sae(tmp_path / "sae.safetensors")
    assert type(loaded) is type(sae)
    assert loaded.options() == sae.options()
    z = loaded_centering.apply(tokens)
    torch.testing.assert_close(loaded_centering.undo(loaded(z)), centering.undo(sae(centering.apply(tokens))))


def test_a_file_that_is_not_ours_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    save_file({"W_dec": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by sae_outliers"):
        load_sae(tmp_path / "other.safetensors")


def test_affine_moves_between_devices_with_all_its_parts() -> None:
    affine = Affine(torch.ones(2), torch.eye(2), torch.eye(2))
    assert affine.to("meta").tensors().keys() == affine.tensors().keys()
