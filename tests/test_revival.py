from collections.abc import Callable
from math import nan

import pytest
import torch
from torch import Tensor

from sae_outliers.config import TrainConfig
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder, StepOutput
from sae_outliers.training.revival import (
    AuxK,
    GhostGrads,
    PreactLoss,
    Resample,
    Revival,
    feature_weights,
    reconstruct_densely,
    reconstruct_sparsely,
)
from sae_outliers.training.trainer import Trainer
from tests.test_sae import trained_like

DEAD = torch.tensor([1, 4, 9, 20, 30])
ADDING: dict[str, Callable[[], Revival]] = {
    "auxk": lambda: AuxK(alpha=0.5, k_aux=3),
    "ghost_grads": GhostGrads,
    "preact_loss": lambda: PreactLoss(coefficient=0.7),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5


def case(x: Tensor) -> tuple[JumpReLU, StepOutput]:
    sae = trained_like("jumprelu")
    assert isinstance(sae, JumpReLU)
    return sae, sae.training_step(x)


def gradients(loss: Tensor, sae: SparseAutoencoder) -> dict[str, Tensor]:
    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def test_auxk_is_the_residual_error_of_the_largest_dead_features_over_the_residual_variance(x: Tensor) -> None:
    sae, output = case(x)
    e, e_hat = output.residual, torch.zeros_like(x)
    for t, row in enumerate(x):
        pre = {int(j): (row - sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j] for j in DEAD}
        for j in sorted(pre, key=lambda j: pre[j].item())[-3:]:
            e_hat[t] = e_hat[t] + pre[j].clamp(min=0) * sae.W_dec[j]
    expected = 0.5 * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    torch.testing.assert_close(AuxK(0.5, k_aux=3).loss(sae, x, output, DEAD), expected)


@pytest.mark.parametrize(("name", "dead"), [("auxk", DEAD), ("auxk", torch.arange(32)), ("preact_loss", DEAD)])
def test_gradients_through_the_pre_activations_agree_with_finite_differences(
    name: str, dead: Tensor, x: Tensor
) -> None:
    """AuxK takes products with the sparse code where the dead are many beside k_aux, dense ones where they are few."""
    sae, output = case(x)
    parameters = tuple(p for n, p in sae.named_parameters() if n != "threshold" or name == "preact_loss")
    revival = ADDING[name]()
    assert torch.autograd.gradcheck(lambda *_: revival.loss(sae, x, output, dead), parameters)


def test_auxk_reconstructs_the_same_by_sparse_and_by_dense_products_gradients_included(x: Tensor) -> None:
    weights = [p.detach().clone().requires_grad_() for p in feature_weights(trained_like("topk"), DEAD)]
    results = []
    for reconstruct in (reconstruct_sparsely, reconstruct_densely):
        e_hat = reconstruct(x, torch.full((8,), 0.2, dtype=torch.float64), *weights, 3)
        results.append((e_hat, *torch.autograd.grad(e_hat.square().sum(), weights)))
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)


def test_ghost_grads_is_its_formula_with_the_scaling_held_constant(x: Tensor) -> None:
    sae, output = case(x)
    e = output.residual
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, DEAD]
    ghost = torch.exp(pre * 8**0.5 / 2.0) @ sae.W_dec[DEAD]
    ghost = ghost * (e.norm(dim=1) / (2 * ghost.norm(dim=1))).detach()[:, None]
    ghost_error = (e - ghost).square().sum(1).mean() / 4
    expected = ghost_error * (e.square().sum(1).mean() / 4 / ghost_error).detach()
    loss = GhostGrads().loss(sae, x, output, DEAD)
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(loss, expected)
    found = gradients(loss, sae)
    for name, reference in gradients(expected, sae).items():
        torch.testing.assert_close(found[name], reference)


@pytest.mark.parametrize("name", ADDING)
def test_a_revival_moves_the_encoder_and_decoder_of_dead_features_and_of_no_others(name: str, x: Tensor) -> None:
    sae, output = case(x)
    loss = ADDING[name]().loss(sae, x, output, DEAD)
    assert isinstance(loss, Tensor)
    found = gradients(loss, sae)
    for per_feature in (found["W_enc"].T, found["W_dec"]):
        moved = per_feature.abs().sum(1).nonzero().flatten()
        assert torch.equal(moved, DEAD)


@pytest.mark.parametrize("name", ADDING)
def test_without_dead_features_nothing_is_added(name: str, x: Tensor) -> None:
    sae, output = case(x)
    assert ADDING[name]().loss(sae, x, output, DEAD[:0]) == 0


def test_only_ghost_grads_and_preact_loss_reach_features_that_are_never_positive(x: Tensor) -> None:
    sae, _ = case(x)
    with torch.no_grad():
        sae.b_enc[DEAD] = -100
    output = sae.training_step(x)
    reached = {}
    for name, revival in ADDING.items():
        loss = revival().loss(sae, x, output, DEAD)
        assert isinstance(loss, Tensor)
        reached[name] = bool(gradients(loss, sae)["b_enc"][DEAD].abs().sum() > 0)
    assert reached == {"auxk": False, "ghost_grads": True, "preact_loss": True}


def test_preact_loss_needs_thresholds() -> None:
    with pytest.raises(ValueError, match="revival=preact_loss needs the thresholds of sae=jumprelu"):
        Trainer(TopK(8, 32, k=4), TrainConfig(steps=1, n_tokens=0), PreactLoss())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AuxK(alpha=nan), r"revival\.alpha=nan must be a finite number"),
        (lambda: AuxK(alpha=-1), r"revival\.alpha=-1 must be at least 0"),
        (lambda: AuxK(k_aux=0), r"revival\.k_aux=0 must be at least 1"),
        (lambda: PreactLoss(coefficient=-1e-6), r"revival\.coefficient=-1e-06 must be at least 0"),
        (lambda: Resample(every=0), r"revival\.every=0 must be at least 1"),
        (lambda: Resample(until=-1), r"revival\.until=-1 must be at least 0"),
        (lambda: Resample(encoder_norm=0), r"revival\.encoder_norm=0 must be above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(make: Callable[[], Revival], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_trainer_resets_what_a_revival_says_it_has_reinitialised(x: Tensor) -> None:
    class Mine(Revival):
        def after_step(
            self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, step: int, dead: Callable[[], Tensor]
        ) -> Tensor | None:
            return DEAD if step == 2 else None

    cfg = TrainConfig(steps=9, n_tokens=0, batch_size=24, warmup_steps=0)
    trainer = Trainer(TopK(8, 32, k=8).double(), cfg, Mine())
    for _ in range(2):
        before = {name: state.clone() for name, state in trainer.optimizer.state[trainer.optimised["W_dec"]].items()}
        trainer.train_step(x)
    after = trainer.optimizer.state[trainer.optimised["W_dec"]]
    assert before["exp_avg_sq"][DEAD].abs().sum() > 0
    assert after["exp_avg"][DEAD].eq(0).all()
    assert after["exp_avg_sq"][DEAD].eq(0).all()
    assert after["exp_avg_sq"].abs().sum() > 0
    assert trainer.last_fired[DEAD].eq(trainer.tokens).all()


def test_resample_starts_dead_features_anew_at_a_badly_explained_token_and_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    cfg = TrainConfig(steps=20, n_tokens=0, batch_size=64, dead_window=64, warmup_steps=0)
    trainer = Trainer(TopK(8, 32, k=4), cfg, Resample(every=3, until=6))
    dead = torch.tensor([5, 11])
    with torch.no_grad():
        trainer.sae.b_enc[dead] = -1e3
    x = torch.randn(64, 8)
    x[17] = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1000])  # its loss is all of the loss
    trainer.train_step(x)
    trainer.train_step(x)
    before = trainer.sae.W_dec.detach().clone()
    assert trainer.dead().tolist() == dead.tolist()
    sae = trainer.sae
    trainer.train_step(x)
    direction = torch.nn.functional.normalize(x[17] - sae.b_dec, dim=0)
    for j in dead.tolist():
        torch.testing.assert_close(sae.W_dec[j], direction)
        others = sae.W_enc.norm(dim=0)[[i for i in range(32) if i not in dead.tolist()]]
        torch.testing.assert_close(sae.W_enc[:, j], 0.2 * others.mean() * direction)
        assert sae.b_enc[j] == 0
        for name in ("W_enc", "W_dec"):
            state = trainer.optimizer.state[trainer.optimised[name]]
            assert state["exp_avg"][j].eq(0).all()
            assert state["exp_avg_sq"][j].eq(0).all()
    others = [i for i in range(32) if i not in dead.tolist()]
    torch.testing.assert_close(sae.W_dec[others], before[others], atol=0.01, rtol=0)
    assert trainer.dead().tolist() == []


def test_resample_leaves_steps_between_and_after_alone() -> None:
    cfg = TrainConfig(steps=20, n_tokens=0, batch_size=64, dead_window=64)
    trainer = Trainer(TopK(8, 32, k=4), cfg, Resample(every=3, until=3))
    with torch.no_grad():
        trainer.sae.b_enc[5] = -1e3
    for step in range(1, 7):
        if step == 4:
            with torch.no_grad():
                trainer.sae.b_enc[5] = -1e3
        trainer.train_step(torch.randn(64, 8))
        assert (trainer.sae.b_enc[5].item() == 0) == (step == 3)
