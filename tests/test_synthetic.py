import pytest
import torch

from sae_outliers.activations.capture import capture
from sae_outliers.data.synthetic import Numbers
from sae_outliers.models.other.synthetic import load
from sae_outliers.runs.setup import true_features_of
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import mmcs
from sae_outliers.stats.moments import moments
from tests.conftest import composed

SIZES = {"d_model": 64, "n_directions": 256, "active": 8, "outlier_dims": 2, "positions": 128, "seed": 0}


def tokens(gamma: float, seed: int = 0, items: int = 40) -> torch.Tensor:
    backbone = load(**SIZES, gamma=gamma)
    documents = (number for number, _ in zip(Numbers()(seed), range(items), strict=False))
    return torch.cat([capture(backbone, batch, [1])[1].flatten(0, 1) for batch in backbone.batches(documents, 8)])


def test_gamma_is_about_what_it_is_set_to_and_the_mean_lies_in_few_dimensions() -> None:
    measured = moments([tokens(5.0)])
    assert measured.gamma == pytest.approx(5.0, rel=0.1)
    assert measured.variance.sum().sqrt().item() == pytest.approx(64, rel=0.1)
    ratio = measured.mean.abs() / measured.variance.sqrt()
    assert set(ratio.topk(2).indices.tolist()) == {0, 1}


def test_tokens_are_sparse_sums_of_the_directions() -> None:
    backbone = load(**SIZES, gamma=0.0)
    (block,) = backbone.blocks
    token = capture(backbone, next(backbone.batches([3], 1)), [1])[1][0, 0]
    # with more directions than dimensions the sum is not unique; the true one has 8 positive terms
    rng = torch.Generator().manual_seed(3)
    gumbel = -torch.empty(128, 256).exponential_(generator=rng).log()
    chosen = (gumbel - 0.5 * torch.arange(1, 257).log()).topk(8, dim=1).indices[0]
    solution = torch.linalg.lstsq(block.directions[chosen].T.detach(), token).solution
    torch.testing.assert_close(solution @ block.directions[chosen].detach(), token, atol=1e-2, rtol=0)
    assert (solution > 0).all()


def test_an_items_tokens_follow_from_its_number_and_other_seeds_have_other_items() -> None:
    assert torch.equal(tokens(1.0, items=3), tokens(1.0, items=3))
    assert not torch.equal(tokens(1.0, seed=0, items=1), tokens(1.0, seed=1, items=1))


@pytest.mark.parametrize("model", ["small", "sparse"])
def test_the_saes_of_a_study_do_not_begin_at_the_true_features(model: str) -> None:
    cfg = composed(f"model=synthetic/{model}")
    true_features = true_features_of(cfg)
    assert true_features is not None
    d_model = cfg.model.loader.d_model
    found = {seed: mmcs(TopK(d_model, 4 * d_model, 8, seed=seed).W_dec, true_features) for seed in (0, 1, 1_000_000)}
    assert found[0] < 0.5
    assert found[1] < 0.5
    assert found[1_000_000] == pytest.approx(1, abs=1e-5)  # the network's own seed: that SAE has nothing to find
