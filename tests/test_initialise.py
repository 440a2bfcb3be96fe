from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sae_outliers.config import InitConfig
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.initialization import initialise, reads_tokens
from sae_outliers.stats.moments import moments

D, RANK = 16, 5


@pytest.fixture
def tokens() -> Tensor:
    """Tokens in a subspace of 5 dimensions, off the origin."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(3000, RANK, generator=rng) @ torch.randn(RANK, D, generator=rng) + 3


def initialised(tokens: Tensor, **options: object) -> TopK:
    sae = TopK(D, 200, k=4)

    def chunks() -> Iterator[Tensor]:
        return iter(tokens.split(700))

    initialise(sae, InitConfig(**options), chunks, moments(chunks(), covariance=True), seed=0)  # type: ignore[arg-type]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(200))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    return sae


def test_random_leaves_the_directions_that_the_seed_gave(tokens: Tensor) -> None:
    sae = initialised(tokens, name="random")
    assert torch.equal(sae.W_dec, TopK(D, 200, k=4).W_dec)
    assert sae.b_dec.eq(0).all()


@pytest.mark.parametrize("rank", [None, RANK])
def test_active_subspace_directions_lie_in_the_space_that_the_tokens_span(rank: int | None, tokens: Tensor) -> None:
    directions = initialised(tokens, name="active_subspace", rank=rank).W_dec.detach()
    _, _, axes = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    inside = directions @ axes[:RANK].T @ axes[:RANK]
    torch.testing.assert_close(inside, directions, atol=1e-4, rtol=0)
    assert torch.linalg.matrix_rank(directions, rtol=1e-3) > 2


def test_datapoint_directions_point_from_the_mean_to_tokens(tokens: Tensor) -> None:
    directions = initialised(tokens, name="datapoint", blend=1.0).W_dec.detach()
    towards = torch.nn.functional.normalize(tokens - tokens.mean(0), dim=1)
    assert ((directions @ towards.T).amax(1) > 1 - 1e-5).all()
    half = initialised(tokens, name="datapoint", blend=0.5).W_dec.detach()
    expected = torch.nn.functional.normalize(directions + TopK(D, 200, k=4).W_dec.detach(), dim=1)
    torch.testing.assert_close(half, expected)


def test_b_dec_starts_at_the_mean_or_at_the_point_of_least_distance(tokens: Tensor) -> None:
    tokens[:300] += 50  # the mean follows what is far out, the median hardly
    mean = initialised(tokens, name="random", b_dec="mean").b_dec.detach()
    torch.testing.assert_close(mean, tokens.mean(0))
    median = initialised(tokens, name="random", b_dec="geometric_median").b_dec.detach()

    def distance(point: Tensor) -> float:
        return (tokens - point).norm(dim=1).sum().item()

    assert distance(median) < distance(mean)
    for step in 0.1 * torch.randn(20, D, generator=torch.Generator().manual_seed(1)):
        assert distance(median) <= distance(median + step)


@pytest.mark.parametrize(
    ("name", "b_dec", "needed"),
    [
        ("random", "zeros", False),
        ("active_subspace", "mean", False),
        ("datapoint", "zeros", True),
        ("random", "geometric_median", True),
    ],
)
def test_inits_say_whether_they_read_the_tokens_and_do_not_where_they_say_no(
    name: str, b_dec: str, needed: bool, tokens: Tensor
) -> None:
    cfg, read = InitConfig(name=name, b_dec=b_dec), []

    def chunks() -> Iterator[Tensor]:
        read.append(True)
        return iter([tokens])

    initialise(TopK(D, 200, k=4), cfg, chunks, moments([tokens], covariance=True), seed=0)
    assert bool(read) == reads_tokens(cfg) == needed


def test_a_rank_above_the_width_is_refused(tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=r"init\.rank=17 exceeds d_model=16"):
        initialised(tokens, name="active_subspace", rank=17)
