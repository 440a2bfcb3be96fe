from collections.abc import Callable
from math import inf, nan

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import CACHED_ROWS, SAES, SparseAutoencoder, type_name, type_named

TYPES: dict[str, Callable[..., SparseAutoencoder]] = {
    "topk": TopK,
    "relu": lambda *a, **kw: ReLU(*a, **kw, sparsity=0.5),
    "relu_april": lambda *a, **kw: ReLU(*a, **kw, sparsity=0.5, decoder_norm_weighted=True),
    "batchtopk": BatchTopK,
    "jumprelu": lambda *a, **kw: JumpReLU(*a, **kw, sparsity=0.01, bandwidth=0.2),
    "gated": lambda *a, **kw: Gated(*a, **kw, sparsity=0.5),
    "matryoshka": lambda *a, **kw: Matryoshka(*a, **kw, prefixes=[0.25, 0.5, 1]),
    "groupmax": GroupMax,
}
every_type = pytest.mark.parametrize("name", TYPES)


def trained_like(
    name: str, d_model: int = 8, n_features: int = 32, k: int = 4, scale: float = 2.0
) -> SparseAutoencoder:
    """An SAE in float64 whose weights, biases and thresholds are all different from where they start."""
    sae = TYPES[name](d_model, n_features, k, scale=scale, seed=1).double()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    if isinstance(sae, BatchTopK):
        sae.threshold.fill_(0.7)
    return sae


@pytest.fixture
def x() -> Tensor:
    return torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5


@every_type
def test_initial_encoder_is_the_transposed_unit_norm_decoder_and_biases_are_zero(name: str) -> None:
    sae = TYPES[name](16, 96, k=4, seed=3)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(96))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.b_enc.eq(0).all()
    assert sae.b_dec.eq(0).all()
    assert torch.equal(sae.W_dec, TYPES[name](16, 96, k=4, seed=3).W_dec)
    assert not torch.equal(sae.W_dec, TYPES[name](16, 96, k=4, seed=4).W_dec)


def naive_features(sae: SparseAutoencoder, row: Tensor) -> Tensor:
    """Features of one token, one feature at a time."""
    pre = [((row - sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j]).item() for j in range(sae.n_features)]
    return torch.tensor([max(0.0, naive_feature(sae, pre, j)) for j in range(sae.n_features)], dtype=torch.float64)


def naive_feature(sae: SparseAutoencoder, pre: list[float], j: int) -> float:
    value = pre[j]
    active, magnitude = True, value
    if isinstance(sae, TopK):
        active = sum(other > value for other in pre) < sae.k
    elif isinstance(sae, BatchTopK):
        active = value > sae.threshold.item()
    elif isinstance(sae, JumpReLU):
        active = value > sae.threshold[j].item() * sae.scale / sae.d_model**0.5
    elif isinstance(sae, GroupMax):
        size = sae.n_features // sae.k
        first = j // size * size
        active = value == max(pre[first : first + size])
    elif isinstance(sae, Gated):
        active = value > 0
        magnitude = ((value - sae.b_enc[j]) * sae.r_mag[j].exp() + sae.b_mag[j]).item()
    return magnitude if active else 0.0


@every_type
def test_features_and_reconstruction_agree_with_a_loop(name: str, x: Tensor) -> None:
    sae = trained_like(name)
    with torch.no_grad():
        expected = torch.stack([naive_features(sae, row) for row in x])
        pre = sae.pre_activations(x)
        torch.testing.assert_close(sae.features(pre), expected)
        x_hat, active = sae.reconstruct(pre)
        torch.testing.assert_close(x_hat, expected @ sae.W_dec + sae.b_dec)
        assert torch.equal(active, (expected > 0).sum(0))


def naive_training_loss(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss as the papers write it, by way of dense features, and those features."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc

    def error(features: Tensor, W_dec: Tensor = sae.W_dec, b_dec: Tensor = sae.b_dec) -> Tensor:
        return (x - b_dec - features @ W_dec).square().sum() / len(x) / sae.scale**2

    if isinstance(sae, BatchTopK):
        cut = pre.flatten().topk(sae.k * len(x)).values.amin()
        features = pre.relu() * (pre >= cut)
        if isinstance(sae, Matryoshka):
            prefixes = [features * (torch.arange(sae.n_features) < end) for end in (8, 16, 32)]
            return torch.stack([error(prefix) for prefix in prefixes]).mean(), features
        return error(features), features
    features = sae.features(pre)
    if isinstance(sae, ReLU):
        norms = sae.W_dec.norm(dim=1) if sae.decoder_norm_weighted else torch.ones(sae.n_features).double()
        return error(features) + 0.5 * (features * norms).sum() / len(x) / sae.scale, features
    if isinstance(sae, Gated):
        gate = pre.relu()
        auxiliary = error(gate, sae.W_dec.detach(), sae.b_dec.detach())
        return error(features) + auxiliary + 0.5 * gate.sum() / len(x) / sae.scale, features
    if isinstance(sae, JumpReLU):
        return error(features) + 0.01 * (features > 0).sum() / len(x), features
    return error(features), features


@every_type
def test_a_training_step_has_the_loss_and_the_gradients_of_the_dense_formula(name: str, x: Tensor) -> None:
    sae = trained_like(name)
    output = sae.training_step(x)
    loss, features = naive_training_loss(sae, x)
    torch.testing.assert_close(output.loss, loss)
    assert torch.equal(output.fired, (features > 0).any(0))
    torch.testing.assert_close(output.residual, (x - sae.b_dec - features @ sae.W_dec).detach())
    with_true_gradients = [p for name, p in sae.named_parameters() if name != "threshold"]
    gradients = torch.autograd.grad(output.loss, with_true_gradients)
    for gradient, reference in zip(gradients, torch.autograd.grad(loss, with_true_gradients), strict=True):
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("gated", "jumprelu")])
def test_the_gradients_of_a_step_agree_with_finite_differences(name: str, x: Tensor) -> None:
    sae = trained_like(name)
    # the parameters are perturbed in place, so the step sees each change
    assert torch.autograd.gradcheck(lambda *_: sae.training_step(x[:5]).loss, tuple(sae.parameters()))


def test_jumprelu_and_gated_gradients_agree_with_finite_differences_where_they_are_true_ones(x: Tensor) -> None:
    """Thresholds have pseudo-gradients, and the decoder of Gated's auxiliary reconstruction has none."""
    jumprelu, gated = trained_like("jumprelu"), trained_like("gated")
    true = {jumprelu: ["W_enc", "b_enc", "W_dec", "b_dec"], gated: ["W_enc", "b_enc", "r_mag", "b_mag"]}
    for sae, names in true.items():
        parameters = tuple(p for name, p in sae.named_parameters() if name in names)
        assert torch.autograd.gradcheck(lambda *_, sae=sae: sae.training_step(x[:5]).loss, parameters)


def test_jumprelu_moves_thresholds_by_the_derivative_of_the_expected_loss() -> None:
    """One feature, z normal: E[loss] as a function of the threshold is known, and its derivative with it."""
    tokens, threshold, sparsity = 400_000, 0.8, 0.1
    sae = JumpReLU(1, 1, k=1, sparsity=sparsity, bandwidth=0.1).double()
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(0.5)
        sae.threshold.fill_(threshold)
    z = torch.randn(tokens, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sae.training_step(z).loss.backward()
    # loss per token: z² where z <= θ, z²/4 + sparsity above; so dE/dθ = pdf(θ) (θ² - θ²/4 - sparsity)
    expected = norm.pdf(threshold) * (0.75 * threshold**2 - sparsity)
    assert sae.threshold.grad is not None
    assert sae.threshold.grad.item() == pytest.approx(expected, rel=0.05)


def test_jumprelu_starts_with_about_k_features_on_data_without_a_mean() -> None:
    sae = JumpReLU(64, 512, k=16, scale=3 * 64**0.5)
    with torch.no_grad():
        active = sae.features(sae.pre_activations(3 * torch.randn(2000, 64))) > 0
    assert active.sum(1).float().mean().item() == pytest.approx(16, rel=0.1)


def test_batchtopk_threshold_is_a_running_mean_of_the_least_selected_value(x: Tensor) -> None:
    sae = BatchTopK(8, 32, k=4).double()
    assert torch.equal((sae.features(sae.pre_activations(x)) > 0).sum(1), torch.full((24,), 4))  # none yet: per token
    least = [sae.pre_activations(batch).flatten().topk(4 * 12).values.amin() for batch in x.split(12)]
    for batch in x.split(12):
        sae.training_step(batch)
    torch.testing.assert_close(sae.threshold, 0.99 * least[0] + 0.01 * least[1])
    with torch.no_grad():
        sae.b_enc -= 1e3
    before = sae.threshold.clone()
    sae.training_step(x)  # nothing is positive, so nothing is the least
    assert torch.equal(sae.threshold, before)


def test_relu_april_leaves_decoder_norms_free_and_others_do_not() -> None:
    assert [name for name in TYPES if not TYPES[name](8, 32, k=4).unit_norm_decoder] == ["relu_april"]


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sae\.k=5 groups do not divide sae\.n_features=32"):
        GroupMax(8, 32, k=5)
    for prefixes in ([0.5, 0.25, 1], [0.5], [], [0.001, 1]):
        with pytest.raises(ValueError, match=r"sae\.prefixes=.* must be fractions of n_features that ascend to 1"):
            Matryoshka(8, 32, k=4, prefixes=prefixes)
    with pytest.raises(ValueError, match="precision=int4 does not exist: use one of float32, bf16_select"):
        TopK(8, 32, k=4, precision="int4")


@pytest.mark.parametrize("kind", [ReLU, JumpReLU, Gated])
@pytest.mark.parametrize(("sparsity", "bound"), [(-0.1, "at least 0"), (nan, "a finite number"), (inf, "a finite num")])
def test_a_penalty_that_cannot_be_is_refused(kind: type[ReLU | JumpReLU | Gated], sparsity: float, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"sae\.sparsity={sparsity} must be {bound}"):
        kind(8, 32, k=4, sparsity=sparsity)


def test_a_bandwidth_that_catches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sae\.bandwidth=0 must be above 0"):
        JumpReLU(8, 32, k=4, bandwidth=0)


def test_each_type_is_registered_and_says_what_a_step_of_it_costs() -> None:
    kinds = {TopK, BatchTopK, Matryoshka, GroupMax, ReLU, JumpReLU, Gated}
    assert {kind for _, kind in SAES.items()} == kinds
    assert SAES["relu_april"] is SAES["relu"] is ReLU
    assert type_name(ReLU) == "relu"
    dense = {kind for kind in kinds if kind.step_cost == 6.3}
    assert dense == {ReLU, JumpReLU, Gated}
    assert {kind.step_cost for kind in kinds - dense} == {2.0}


class TopKOfMine(TopK):
    pass


def test_a_subclass_does_not_pass_for_its_base() -> None:
    assert type_name(TopKOfMine) == "tests.test_sae.TopKOfMine"
    assert type_named("tests.test_sae.TopKOfMine") is TopKOfMine


@pytest.mark.parametrize("n_features", [30, CACHED_ROWS + 30])
def test_a_step_without_the_parallel_gradient_leaves_decoder_norms_unchanged_to_first_order(n_features: int) -> None:
    sae, x = TopK(8, n_features, k=3), torch.randn(640, 8)
    sae.training_step(x).loss.backward()
    sae.remove_parallel_gradient()
    assert sae.W_dec.grad is not None
    assert (sae.W_dec.grad.norm(dim=1) > 0).sum() > n_features / 2
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(n_features), atol=1e-5, rtol=0)
    with torch.no_grad():
        sae.W_dec *= 3
    sae.normalize_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(n_features))


@every_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_type_takes_a_step_in_16_bits_like_the_same_weights_in_float32(
    name: str, dtype: torch.dtype, x: Tensor
) -> None:
    losses, gradients = [], []
    for kind in (dtype, torch.float32):
        sae = trained_like(name).to(dtype).to(kind)
        output = sae.training_step(x.to(dtype).to(kind))
        output.loss.backward()
        losses.append(output.loss.item())
        gradients.append(sae.W_dec.grad.float())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert (gradients[0] - gradients[1]).norm() < 0.2 * gradients[1].norm()  # a choice may fall on another feature
