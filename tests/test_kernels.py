from bisect import bisect_left

import pytest
import torch
from torch import Tensor

from sae_outliers.sae import kernels
from sae_outliers.sae.kernels import (
    ByFeature,
    Code,
    choose_batch_topk,
    choose_group_max,
    choose_positive,
    choose_topk,
    count,
    decode,
    decode_reference,
    largest,
    pre_activations_reference,
    rows_of_k,
    sums_by_feature,
    weighted_rows,
    with_gradient,
)

SHAPES = [(1, 3, 5, 1), (17, 8, 40, 5), (64, 32, 32, 32), (50, 16, 1000, 7)]  # tokens, d_model, n_features, k


def weights(d: int, n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(d * n)
    shapes = [(d, n), (n,), (n, d), (d,)]
    return [torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes]


def ragged(tokens: int, n: int) -> Code:
    """Another number of entries for each token, none for some."""
    chosen = torch.rand(tokens, n, generator=torch.Generator().manual_seed(n)) < torch.linspace(0, 0.5, tokens)[:, None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), chosen.sum(1).cumsum(0)])
    indices = chosen.nonzero()[:, 1]
    return Code(torch.zeros(len(indices), dtype=torch.float64), indices, offsets)


def loss_and_gradients(encode, decoder, code, x, w):  # type: ignore[no-untyped-def]
    W_enc, b_enc, W_dec, b_dec = w
    code = encode(code, x, W_enc, b_enc, b_dec)
    x_hat = decoder(code, W_dec) + b_dec
    # the second term reaches the encoder through the values themselves, as a penalty on them would
    loss = (x_hat - x).square().sum() + code.values.pow(3).sum()
    return x_hat, torch.autograd.grad(loss, w)


def exact(code: Code, x: Tensor, w: list[Tensor]) -> Code:
    """The code with the pre-activations at its places, which `with_gradient` wants to be there."""
    W_enc, b_enc, _, b_dec = w
    return Code(*(part.detach() for part in pre_activations_reference(code, x, W_enc, b_enc, b_dec)))


@pytest.mark.parametrize(("tokens", "d", "n", "k"), SHAPES)
def test_sparse_kernels_agree_with_their_dense_twins_gradients_included(tokens: int, d: int, n: int, k: int) -> None:
    x, w = torch.randn(tokens, d, dtype=torch.float64), weights(d, n)
    for code in (choose_topk(x - w[3], w[0], w[1], k), exact(ragged(tokens, n), x, w)):
        x_hat, gradients = loss_and_gradients(with_gradient, decode, code, x, w)
        x_hat_ref, gradients_ref = loss_and_gradients(pre_activations_reference, decode_reference, code, x, w)
        torch.testing.assert_close(x_hat, x_hat_ref)
        for gradient, reference in zip(gradients, gradients_ref, strict=True):
            torch.testing.assert_close(gradient, reference)


def test_float32_kernels_agree_at_the_size_of_a_real_sae() -> None:
    x, w = torch.randn(256, 192), weights(192, 4096, torch.float32)
    code = choose_topk(x - w[3], w[0], w[1], 32)
    _, gradients = loss_and_gradients(with_gradient, decode, code, x, w)
    _, references = loss_and_gradients(pre_activations_reference, decode_reference, code, x, w)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 1e-5 * reference.norm()


def test_gradients_agree_with_finite_differences() -> None:
    x, w = torch.randn(6, 4, dtype=torch.float64), weights(4, 9)

    def reconstruct(W_enc, b_enc, W_dec, b_dec):  # type: ignore[no-untyped-def]
        code = with_gradient(choose_topk(x - b_dec, W_enc, b_enc, 3), x, W_enc, b_enc, b_dec)
        return decode(code._replace(values=code.values.relu()), W_dec) + b_dec

    assert torch.autograd.gradcheck(reconstruct, w)


@pytest.mark.parametrize(("n", "k"), [(1024, 1), (1024, 5), (4096, 64), (1000, 3), (96, 96), (8192, 64)])
def test_largest_finds_what_topk_finds(n: int, k: int) -> None:
    pre = torch.randn(30, n)
    values, indices = largest(pre, k)
    torch.testing.assert_close(values.sort(1).values, pre.topk(k, dim=1).values.sort(1).values, rtol=0, atol=0)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_largest_fills_up_with_any_of_equal_values() -> None:
    values, indices = largest(torch.zeros(3, 1024), 4)
    assert values.eq(0).all()
    assert all(len(set(row)) == 4 for row in indices.tolist())


def test_choosing_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (W_enc, b_enc, _, _) = torch.randn(50, 16), weights(16, 64, torch.float32)
    choosers = (choose_topk, choose_batch_topk, choose_group_max)
    whole = [choose(x, W_enc, b_enc, 4).dense(64) for choose in choosers]
    monkeypatch.setitem(kernels.CHUNK_SIZE, "cpu", 7 * 64)
    monkeypatch.setattr(kernels, "MIN_ROWS", 1)
    for choose, expected in zip(choosers, whole, strict=True):
        torch.testing.assert_close(choose(x, W_enc, b_enc, 4).dense(64), expected)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_batch_topk_takes_the_largest_of_the_whole_batch(spread: float) -> None:
    """With a spread between tokens, the guess of the cut-off that a few tokens give is far off."""
    x, (W_enc, b_enc, _, _) = torch.randn(300, 16), weights(16, 64, torch.float32)
    x = x * torch.linspace(0.1, 0.1 + spread, 300).flip(0)[:, None]
    pre = x @ W_enc + b_enc
    cut = pre.flatten().topk(300 * 4).values.amin()
    expected = torch.where(pre >= cut, pre, 0.0)
    torch.testing.assert_close(choose_batch_topk(x, W_enc, b_enc, 4).dense(64), expected)


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("few", ["no row", "the first rows", "all rows"])
def test_of_the_positive_the_k_largest_are_chosen_and_all_where_a_row_has_no_more(
    few: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SAMPLE", 4)  # "the first rows" have few positive ones and tell nothing of the others
    x, (W_enc, b_enc, _, _) = torch.randn(30, 8, dtype=torch.float64), weights(8, 60)
    x[: {"no row": 0, "the first rows": 4, "all rows": 30}[few]] = 0
    b_enc = torch.where(torch.arange(60) < 2, 1.0, -1e-3).double()
    expected = torch.zeros(30, 60, dtype=torch.float64)
    for t, row in enumerate(((x @ W_enc) + b_enc).tolist()):
        for value, j in sorted(zip(row, range(60), strict=True))[-k:]:
            expected[t, j] = max(value, 0)
    code = choose_positive(x, W_enc, b_enc, k)
    assert (code.values > 0).all()
    torch.testing.assert_close(code.dense(60), expected, rtol=0, atol=1e-12)


def test_group_max_takes_the_largest_of_each_group() -> None:
    x, (W_enc, b_enc, _, _) = torch.randn(20, 16), weights(16, 64, torch.float32)
    dense = choose_group_max(x, W_enc, b_enc, 4).dense(64)
    for pre, row in zip(x @ W_enc + b_enc, dense, strict=True):
        for group in range(4):
            part, chosen = pre[16 * group : 16 * group + 16], row[16 * group : 16 * group + 16]
            assert chosen.nonzero().flatten().tolist() == [part.argmax().item()]
            torch.testing.assert_close(chosen.sum(), part.amax())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 50.0])
def test_bfloat16_candidates_lead_to_the_float32_choice_however_large_the_mean(gamma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 128, generator=rng)
    x = x + gamma * torch.nn.functional.one_hot(torch.tensor(7), 128) * 128**0.5
    W = torch.nn.functional.normalize(torch.randn(2048, 128, generator=rng), dim=1).T
    exact_code, code = (choose_topk(x, W, torch.zeros(2048), 32, p) for p in ("float32", "bf16_select"))
    same = exact_code.dense(2048).ne(0) == code.dense(2048).ne(0)
    assert (~same).sum() / 2 <= 0.001 * 500 * 32
    shared = exact_code.dense(2048).ne(0) & code.dense(2048).ne(0)
    torch.testing.assert_close(
        exact_code.dense(2048)[shared], code.dense(2048)[shared], rtol=1e-4, atol=1e-4 * (1 + gamma)
    )


def test_the_transposed_code_adds_up_a_feature_chosen_by_many_tokens_and_leaves_unchosen_rows_zero() -> None:
    code = rows_of_k(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2, 0], [2, 3]]))
    transposed = ByFeature(code, 5).transpose(code.values)
    product = weighted_rows(transposed, torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    assert product.tolist() == [[2, 20], [0, 0], [7, 70], [8, 80], [0, 0]]
    assert sums_by_feature(transposed).tolist() == [2, 0, 4, 4, 0]


@pytest.mark.parametrize("n", [3, 1000, 1 << 16, (1 << 16) + 1])  # the last is sorted by torch, the others by numpy
@pytest.mark.parametrize("entries", [0, 1, 5000])
def test_entries_are_put_in_the_order_of_features_and_of_tokens_within_one(n: int, entries: int) -> None:
    rng = torch.Generator().manual_seed(n)
    indices, tokens = torch.randint(n, (entries,), generator=rng), torch.arange(entries + 1)
    by_feature = ByFeature(Code(torch.zeros(entries), indices, tokens), n)
    assert by_feature.order.tolist() == sorted(range(entries), key=lambda i: (indices[i].item(), i))
    assert by_feature.tokens.tolist() == by_feature.order.tolist()  # an entry for each token
    ordered = indices[by_feature.order].tolist()
    assert by_feature.offsets.tolist() == [bisect_left(ordered, feature) for feature in range(n + 1)]


@pytest.mark.parametrize("d", [256, 300])
def test_rows_of_a_large_table_are_gathered_by_columns_to_the_same_bits(
    d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(d)
    W, offsets = torch.randn(64, d, generator=rng), torch.tensor([0, 3, 3, 20, 41])
    code = Code(torch.randn(41, generator=rng), torch.randperm(64, generator=rng)[:41], offsets)
    whole = weighted_rows(code, W)
    torch.testing.assert_close(whole, code.dense(64) @ W)
    monkeypatch.setattr(kernels, "CACHE", 64 * kernels.COLUMNS * 4)
    assert kernels._pays_by_columns(W) == (d == 256)
    assert torch.equal(weighted_rows(code, W), whole)


def test_fired_names_the_features_that_are_positive_somewhere() -> None:
    code = rows_of_k(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[2, 0], [0, 3]]))
    assert code.fired(5).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_kernels_agree_with_float32_ones_to_their_own_digits(dtype: torch.dtype) -> None:
    """Weights and tokens are the same numbers in both, so that only what is computed of them is rounded."""
    x = torch.randn(40, 24).to(dtype)
    w = [(0.2 * p.detach()).to(dtype).requires_grad_() for p in weights(24, 96)]  # in the range of float16
    wide = [p.detach().float().requires_grad_() for p in w]
    chosen = choose_topk((x - w[3]).float(), wide[0], wide[1], 8)
    _, references = loss_and_gradients(with_gradient, decode, chosen, x.float(), wide)
    code = chosen._replace(values=chosen.values.to(dtype))
    _, gradients = loss_and_gradients(with_gradient, decode, code, x, w)
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.float() - reference).norm() < 8 * torch.finfo(dtype).eps * reference.norm()


def test_counts_of_chosen_indices_agree_with_a_loop() -> None:
    indices, chosen = (
        torch.tensor([[2, 0], [2, 3], [2, 1]]),
        torch.tensor([[True, False], [True, True], [False, False]]),
    )
    expected = [sum(i == f and c for i, c in zip(indices.flatten(), chosen.flatten(), strict=True)) for f in range(5)]
    assert count(indices, chosen, 5).tolist() == expected == [0, 0, 2, 1, 0]
