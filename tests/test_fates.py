import pytest
import torch

from sae_outliers.results.features import Fate
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import FateCounter, alignment, evaluate, mmcs
from sae_outliers.stats.transforms import Affine


def test_fates_agree_with_a_loop_over_tokens() -> None:
    pre = torch.randn(200, 60, generator=torch.Generator().manual_seed(0)) - torch.linspace(-1, 4, 60)
    pre[:, :2] = -pre[:, :2].abs()
    k = 4
    counter = FateCounter(60, k)
    for chunk in pre.split(33):
        counter.update(chunk)

    selected = [0] * 60
    for row in pre.tolist():
        for j in sorted(range(60), key=lambda j: -row[j])[:k]:
            selected[j] += row[j] > 0
    positive = [any(row[j] > 0 for row in pre.tolist()) for j in range(60)]
    fates = [
        Fate.NEVER_POSITIVE if not p else Fate.NEVER_SELECTED if not s else Fate.ALIVE
        for p, s in zip(positive, selected, strict=True)
    ]
    assert counter.selected.tolist() == selected
    assert counter.highest.tolist() == [max(row[j] for row in pre.tolist()) for j in range(60)]
    assert counter.fates.tolist() == fates
    assert set(fates) == set(Fate)
    assert counter.dead_pct_topk == pytest.approx(100 * sum(f != Fate.ALIVE for f in fates) / 60)
    assert counter.dead_pct_relu == pytest.approx(100 * sum(f == Fate.NEVER_POSITIVE for f in fates) / 60)


def test_a_feature_that_is_among_the_k_largest_only_at_zero_is_not_selected() -> None:
    counter = FateCounter(3, k=2)
    counter.update(torch.tensor([[1.0, -1.0, -2.0]]))
    assert counter.selected.tolist() == [1, 0, 0]


def test_alignment_is_the_cosine_with_each_column() -> None:
    W_enc = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    assert alignment(W_enc, torch.tensor([5.0, 0.0])).tolist() == [1.0, 0.0, -1.0]


def test_mean_reconstruction_and_always_on_features_agree_with_plain_loops() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=rng) + 3.0 * torch.arange(8)
    centering = Affine(torch.full((8,), 1.0), scale=torch.tensor(0.5))
    sae = TopK(8, 32, k=3, seed=1)
    with torch.no_grad():
        sae.b_dec.normal_(generator=rng)
    found = evaluate(sae, centering, x.split(77), variance=8.0)
    with torch.no_grad():
        features = sae.features(sae.pre_activations(centering.apply(x)))
        x_hat = (features @ sae.W_dec + sae.b_dec) / 0.5 + 1.0
    torch.testing.assert_close(found.mean_x_hat.float(), x_hat.mean(0))
    share = [sum(value > 0 for value in column) / 500 for column in features.T.tolist()]
    assert found.always_on.tolist() == [one > 0.9 for one in share]
    assert 0 < found.always_on.sum() < 5
    expected = 100 * sum(one for one in share if one > 0.9) / sum(share)
    assert found.always_on_l0_pct == pytest.approx(expected)
    assert found.fvu == pytest.approx(((x - x_hat).square().sum() / (500 * 8)).item(), rel=1e-5)


def test_mmcs_is_the_mean_of_each_true_features_largest_cosine() -> None:
    rng = torch.Generator().manual_seed(0)
    W_dec, true = torch.randn(20, 6, generator=rng), torch.randn(9, 6, generator=rng)
    cosines = [max(torch.cosine_similarity(row, one, dim=0).item() for row in W_dec) for one in true]
    assert mmcs(W_dec, true) == pytest.approx(sum(cosines) / 9, rel=1e-6)
    assert mmcs(torch.cat([W_dec, 3 * true]), true) == pytest.approx(1)
