"""What is selected by way of a product in bfloat16, against float64 and against the product in float32."""

import pytest
import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import evaluate, evaluate_by_screening
from sae_outliers.sae.kernels import choose_topk
from sae_outliers.sae.screening import Selection, screened, selected_reference
from sae_outliers.stats.transforms import Affine

D_MODEL, N_FEATURES, K, TOKENS = 48, 1024, 8, 700


def tokens(gamma: float) -> Tensor:
    """Normal tokens with two outlier dimensions, and a mean of this severity."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, D_MODEL, generator=rng)
    x[:, 0] *= 20
    mean = torch.randn(D_MODEL, generator=rng)
    mean[1] *= 30
    return x + gamma * x.std(0).norm() * mean / mean.norm()


def sae_with(directions: Tensor | None = None) -> TopK:
    rng = torch.Generator().manual_seed(1)
    sae = TopK(D_MODEL, N_FEATURES, k=K, seed=0)
    if directions is not None:
        sae.set_directions(directions)
    with torch.no_grad():
        sae.b_enc.normal_(generator=rng).mul_(0.1)
        sae.b_dec.normal_(generator=rng).mul_(0.1)
    return sae


def joined(selections: list[Selection]) -> Selection:
    values, indices, highest = zip(*selections, strict=True)
    return Selection(torch.cat(values), torch.cat(indices), torch.stack(highest).amax(0))


def both(sae: TopK, x: Tensor) -> tuple[Selection, Selection, Tensor]:
    """The screened selection, its twin, and all pre-activations in float64."""
    weights = sae.W_enc.detach(), sae.b_enc.detach()
    x = x - sae.b_dec.detach()
    pre = x.double() @ weights[0].double() + weights[1].double()
    return joined(list(screened(x, *weights, K))), joined(list(selected_reference(x, *weights, K))), pre


def is_the_largest(found: Selection, pre: Tensor) -> bool:
    """Whether each token's are its K largest, up to pairs that float32 cannot tell apart."""
    least_chosen = pre.gather(1, found.indices).amin(1)
    others = pre.scatter(1, found.indices, -torch.inf).amax(1)
    distinct = all(len(set(row)) == K for row in found.indices.tolist())
    return distinct and bool((others - least_chosen <= 1e-5 * pre.abs().amax(1)).all())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 50.0])
def test_the_selection_is_that_of_exact_pre_activations(gamma: float) -> None:
    found, twin, pre = both(sae_with(), tokens(gamma))
    assert is_the_largest(found, pre)
    assert is_the_largest(twin, pre)
    scale = pre.abs().amax().item()
    torch.testing.assert_close(found.values.double(), pre.gather(1, found.indices), rtol=0, atol=1e-6 * scale)
    assert torch.equal(found.highest > 0, pre.amax(0) > 0)
    assert torch.equal(twin.highest > 0, pre.amax(0) > 0)
    torch.testing.assert_close(found.highest.double(), pre.amax(0), rtol=0, atol=0.01 * scale)


def test_features_that_bfloat16_cannot_tell_apart_are_ranked_in_float32() -> None:
    rng = torch.Generator().manual_seed(2)
    alike = torch.randn(D_MODEL, generator=rng) + 1e-3 * torch.randn(N_FEATURES, D_MODEL, generator=rng)
    sae, x = sae_with(alike), tokens(1.0)
    with torch.no_grad():
        sae.b_enc.zero_()
    found, _, pre = both(sae, x)
    with torch.no_grad():
        named = choose_topk(x - sae.b_dec, sae.W_enc, sae.b_enc, K, "bf16_select").indices.view(-1, K)
    assert not is_the_largest(found._replace(indices=named), pre)  # else nothing is shown here
    assert is_the_largest(found, pre)


def test_signs_are_exact_of_features_whose_highest_is_next_to_zero() -> None:
    sae, x = sae_with(), tokens(1.0)
    _, _, pre = both(sae, x)
    scale = pre.std().item()
    with torch.no_grad():  # far less than bfloat16 resolves, and more than float32's rounding
        sae.b_enc -= pre.amax(0).float() + 1e-4 * scale * (-1.0) ** torch.arange(N_FEATURES)
    found, _, pre = both(sae, x)
    assert (pre.amax(0) > 0).sum() == N_FEATURES // 2
    assert torch.equal(found.highest > 0, pre.amax(0) > 0)


@pytest.mark.parametrize("gamma", [1.0, 50.0])
def test_an_evaluation_by_screening_is_that_in_float32(gamma: float) -> None:
    x, sae = tokens(gamma), sae_with()
    centering = Affine(0.9 * x.mean(0), scale=torch.tensor(0.5))
    variance = x.var(0, correction=0).sum().item()
    found, twin = (how(sae, centering, x.split(300), variance) for how in (evaluate_by_screening, evaluate))
    assert torch.equal(found.active, twin.active)
    assert torch.equal(found.fates.selected, twin.fates.selected)
    assert torch.equal(found.fates.fates, twin.fates.fates)
    assert found.fates.n_tokens == TOKENS
    assert found.fvu == pytest.approx(twin.fvu, rel=1e-6)
    assert found.l0 == twin.l0
    torch.testing.assert_close(found.mean_x_hat, twin.mean_x_hat)
