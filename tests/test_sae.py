import pytest
import torch

from sae_outliers.sae.autoencoder import SparseAutoencoder
from sae_outliers.sae.relu import ReLU
from sae_outliers.sae.topk import TopK


@pytest.mark.parametrize("sae_class", [TopK, ReLU])
def test_initial_encoder_is_the_transposed_unit_norm_decoder_and_biases_are_zero(
    sae_class: type[SparseAutoencoder],
) -> None:
    sae = sae_class(16, 100, k=4, seed=3)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(100))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.b_enc.eq(0).all()
    assert sae.b_dec.eq(0).all()
    assert torch.equal(sae.W_dec, sae_class(16, 100, k=4, seed=3).W_dec)
    assert not torch.equal(sae.W_dec, sae_class(16, 100, k=4, seed=4).W_dec)


def test_topk_step_and_forward_agree_with_a_loop() -> None:
    sae, x, scale = TopK(8, 30, k=3), torch.randn(12, 8), 2.0
    with torch.no_grad():
        sae.b_dec += 0.3
    expected, fired = [], set()
    for row in x:
        pre = (row - sae.b_dec) @ sae.W_enc + sae.b_enc
        chosen = [j for j in pre.argsort(descending=True)[:3].tolist() if pre[j] > 0]
        fired |= set(chosen)
        expected.append(sum(pre[j] * sae.W_dec[j] for j in chosen) + sae.b_dec)
    x_hat = torch.stack(expected)
    torch.testing.assert_close(sae(x), x_hat)
    output = sae.training_step(x, scale)
    torch.testing.assert_close(output.loss, (x - x_hat).square().sum() / 12 / 4)
    assert set(output.fired.nonzero().flatten().tolist()) == fired


def test_relu_step_adds_the_l1_of_its_features_over_the_scale() -> None:
    sae, x = ReLU(8, 30, k=3, l1=0.5), torch.randn(12, 8)
    features = (x @ sae.W_enc).clamp(min=0)
    error = (x - features @ sae.W_dec).square().sum(1).mean() / 4
    output = sae.training_step(x, scale=2.0)
    torch.testing.assert_close(output.loss, error + 0.5 * features.sum(1).mean() / 2)
    assert torch.equal(output.fired, (features > 0).any(0))
    _, active = sae.decode_pre_activations(x @ sae.W_enc)
    assert torch.equal(active, (features > 0).sum(1))


def test_a_step_without_the_parallel_gradient_leaves_decoder_norms_unchanged_to_first_order() -> None:
    sae, x = TopK(8, 30, k=3), torch.randn(64, 8)
    sae.training_step(x, 1.0).loss.backward()
    sae.remove_parallel_gradient()
    assert sae.W_dec.grad is not None
    assert sae.W_dec.grad.norm() > 0
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(30), atol=1e-5, rtol=0)
    with torch.no_grad():
        sae.W_dec *= 3
    sae.normalize_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(30))
