import pytest
import torch

from sae_outliers.sae.kernels import (
    decode,
    decode_reference,
    topk_encode,
    topk_encode_reference,
    transposed_product,
)

SHAPES = [(1, 3, 5, 1), (17, 8, 40, 5), (64, 32, 32, 32), (50, 16, 1000, 7)]  # tokens, d_model, n_features, k


def weights(d: int, n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(d * n)
    shapes = [(d, n), (n,), (n, d), (d,)]
    return [torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes]


def loss_and_gradients(encode, decoder, x, w, k):  # type: ignore[no-untyped-def]
    W_enc, b_enc, W_dec, b_dec = w
    values, indices = encode(x, W_enc, b_enc, b_dec, k)
    x_hat = decoder(values, indices, W_dec) + b_dec
    # the second term reaches the encoder through the values themselves, as a penalty on them would
    loss = (x_hat - x).square().sum() + values.pow(3).sum()
    return x_hat, torch.autograd.grad(loss, w)


@pytest.mark.parametrize(("tokens", "d", "n", "k"), SHAPES)
def test_sparse_kernels_agree_with_their_dense_twins_gradients_included(tokens: int, d: int, n: int, k: int) -> None:
    x, w = torch.randn(tokens, d, dtype=torch.float64), weights(d, n)
    x_hat, gradients = loss_and_gradients(topk_encode, decode, x, w, k)
    x_hat_ref, gradients_ref = loss_and_gradients(topk_encode_reference, decode_reference, x, w, k)
    torch.testing.assert_close(x_hat, x_hat_ref)
    for gradient, reference in zip(gradients, gradients_ref, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_float32_kernels_agree_at_the_size_of_a_real_sae() -> None:
    x, w = torch.randn(256, 192), weights(192, 4096, torch.float32)
    _, gradients = loss_and_gradients(topk_encode, decode, x, w, 32)
    _, references = loss_and_gradients(topk_encode_reference, decode_reference, x, w, 32)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 1e-5 * reference.norm()


def test_features_whose_pre_activation_is_negative_get_no_gradient() -> None:
    x, (W_enc, _, _, b_dec) = torch.ones(4, 3, dtype=torch.float64), weights(3, 6)
    b_enc = torch.full((6,), -1e3, dtype=torch.float64, requires_grad=True)
    values, _ = topk_encode(x, W_enc, b_enc, b_dec, 2)
    assert values.eq(0).all()
    gradients = torch.autograd.grad(values.sum(), [W_enc, b_enc, b_dec])
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_gradients_agree_with_finite_differences() -> None:
    x, w = torch.randn(6, 4, dtype=torch.float64), weights(4, 9)

    def reconstruct(W_enc, b_enc, W_dec, b_dec):  # type: ignore[no-untyped-def]
        values, indices = topk_encode(x, W_enc, b_enc, b_dec, 3)
        return decode(values, indices, W_dec) + b_dec

    assert torch.autograd.gradcheck(reconstruct, w)


def test_transposed_product_adds_up_a_feature_chosen_by_many_tokens_and_leaves_unchosen_rows_zero() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    indices = torch.tensor([[2, 0], [2, 3]])
    product = transposed_product(values, indices, 5, torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    assert product.tolist() == [[2, 20], [0, 0], [7, 70], [8, 80], [0, 0]]
