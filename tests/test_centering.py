import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.io import fold, load_sae, save_sae
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import CENTERINGS, INPUT_SCALES, Affine, postln
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


def map_of(name: str, scale: str, tokens: torch.Tensor) -> Affine:
    m = moments([tokens], covariance=True)
    return replace(CENTERINGS[name](m), scale=INPUT_SCALES[scale](m))


@pytest.mark.parametrize(("scale", "norm"), [("none", D), ("sqrt_d", D**0.5), ("unit", 1)])
def test_an_input_scale_gives_tokens_the_norm_that_it_says(scale: str, norm: float, tokens: torch.Tensor) -> None:
    z = map_of("off", scale, tokens).apply(tokens)
    assert z.square().sum(1).mean().sqrt().item() == pytest.approx(norm, rel=1e-4)
    mapped = moments([tokens], covariance=True).mapped(torch.zeros(D), None, INPUT_SCALES[scale](moments([tokens])))
    assert mapped.square_norm.item() == pytest.approx(norm**2, rel=1e-4)


@pytest.mark.parametrize("scale", INPUT_SCALES)
@pytest.mark.parametrize("name", CENTERINGS)
def test_undo_takes_apply_back(name: str, scale: str, tokens: torch.Tensor) -> None:
    centering = map_of(name, scale, tokens)
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
@pytest.mark.parametrize(
    ("name", "scale"), [*((name, "none") for name in CENTERINGS), ("on", "unit"), ("whiten", "sqrt_d")]
)
def test_folding_gives_the_same_features_and_reconstruction(
    name: str, scale: str, kind: str, tokens: torch.Tensor
) -> None:
    centering = map_of(name, scale, tokens)
    sae = trained_like(kind, D, 200, k=8).float()
    folded = fold(sae, centering)
    z = centering.apply(tokens)
    pre, expected = folded.pre_activations(tokens), sae.pre_activations(z)
    assert (pre - expected).norm() < 1e-5 * expected.norm()
    x_hat, expected = folded(tokens), centering.undo(sae(z))
    errors = (x_hat - expected).norm(dim=1) / expected.norm(dim=1)
    assert (errors > 1e-4).sum() <= 3  # a feature just at its threshold may go either way


@pytest.mark.parametrize("kind", TYPES)
def test_sae_and_centering_come_back_from_their_file(kind: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    centering = map_of("whiten", "unit", tokens)
    sae = trained_like(kind, D, 200, k=8).float()
    save_sae(tmp_path / "sae.safetensors", sae, centering, {"gamma": 1.0})
    loaded, loaded_centering = load_sae(tmp_path / "sae.safetensors")
    assert type(loaded) is type(sae)
    assert loaded.options() == sae.options()
    z = loaded_centering.apply(tokens)
    torch.testing.assert_close(loaded_centering.undo(loaded(z)), centering.undo(sae(centering.apply(tokens))))


OLD_CLASSES = {  # as files name them that were written before types had names
    "topk": "sae_outliers.sae.topk.TopK",
    "batchtopk": "sae_outliers.sae.batchtopk.BatchTopK",
    "matryoshka": "sae_outliers.sae.matryoshka.Matryoshka",
    "groupmax": "sae_outliers.sae.groupmax.GroupMax",
    "relu": "sae_outliers.sae.relu.ReLU",
    "relu_april": "sae_outliers.sae.relu.ReLU",
    "jumprelu": "sae_outliers.sae.jumprelu.JumpReLU",
    "gated": "sae_outliers.sae.gated.Gated",
}


class TopKOfMine(TopK):
    pass


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


@pytest.mark.parametrize("kind", TYPES)
def test_files_name_the_type_and_old_files_with_a_class_path_still_load(kind: str, tmp_path: Path) -> None:
    sae = trained_like(kind, D, 200, k=8).float()
    path, old = tmp_path / "sae.safetensors", tmp_path / "old.safetensors"
    save_sae(path, sae, Affine(torch.ones(D)), {})
    assert json.loads(metadata_of(path)["sae"]) == {"type": kind.removesuffix("_april"), "options": sae.options()}
    described = {"class": OLD_CLASSES[kind], "options": sae.options()}
    save_file(load_file(path), old, metadata=metadata_of(path) | {"sae": json.dumps(described)})
    loaded, centering = load_sae(old)
    assert type(loaded) is type(sae)
    assert loaded.options() == sae.options()
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(centering.shift, torch.ones(D))


def test_a_class_of_ones_own_is_saved_by_its_path_and_comes_back_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    save_sae(path, TopKOfMine(D, 20, k=8), Affine(torch.zeros(D)), {})
    assert json.loads(metadata_of(path)["sae"])["type"] == "tests.test_centering.TopKOfMine"
    assert type(load_sae(path, TopKOfMine)[0]) is TopKOfMine
    with pytest.raises(ValueError, match="TopKOfMine, which is not one of ours"):
        load_sae(path)
    gone = {"sae": json.dumps({"type": "gone.Sae", "options": {"k": 8}})}
    save_file(load_file(path), path, metadata=gone)
    with pytest.raises(ValueError, match=r"is of the type gone\.Sae, which is not one of ours"):
        load_sae(path)


def test_a_class_that_no_file_could_name_is_refused(tmp_path: Path) -> None:
    class Local(TopK):
        pass

    with pytest.raises(ValueError, match="Local could not be loaded from a file: define the class at the top level"):
        save_sae(tmp_path / "sae.safetensors", Local(D, 20, k=8), Affine(torch.zeros(D)), {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    save_file({"W_dec": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by sae_outliers"):
        load_sae(tmp_path / "other.safetensors")


def test_affine_moves_between_devices_with_all_its_parts() -> None:
    affine = Affine(torch.ones(2), torch.eye(2), torch.eye(2))
    assert affine.to("meta").tensors().keys() == affine.tensors().keys()
