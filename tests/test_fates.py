import pytest
import torch

from sae_outliers.results.features import Fate
from sae_outliers.sae.evaluation import FateCounter, alignment


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
