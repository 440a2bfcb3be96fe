"""This project's side: a TopK training step in several forms, and death at initialisation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sae_outliers.config import TrainConfig
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import StepOutput
from sae_outliers.sae.evaluation import count_fates, fate_counter
from sae_outliers.stats.transforms import Affine
from sae_outliers.training.revival import AuxK, Revival
from sae_outliers.training.trainer import MOMENTS, Trainer
from tests.benchmarks.plan import Size
from tests.benchmarks.timing import Case

PRODUCT = "encoder's product alone, x @ W_enc"
DEAD_PCT = 20
RELU_DEAD_PCT = 70  # the paper finds as many on AlphaFold 3
DENORMAL = 1e-40  # about what Adam's moments of a feature come to after thousands of steps without a gradient
ENDLESS = 10**9  # steps: the learning rate stays where it is
NO_RATE = 1e-9  # a learning rate next to nothing: within a few steps AuxK would have revived some of the dead features


class DenseTopK(TopK):
    """The same SAE in plain autograd, by way of all pre-activations and dense features."""

    def training_step(self, x: Tensor) -> StepOutput:
        pre = self.pre_activations(x)
        values, indices = pre.topk(self.k, dim=1, sorted=False)
        features = torch.zeros_like(pre).scatter(1, indices, values.relu())
        residual = x - self.b_dec - features @ self.W_dec
        return StepOutput(self.squared_error(residual), (features > 0).any(0), residual.detach())


def training_cases(size: Size, x: Tensor) -> dict[str, Case]:
    """The encoder's product first, which is the unit of all others; x is [batch, d_model]."""
    W_enc = topk(size, x.device).W_enc.detach()
    return {
        PRODUCT: lambda: x @ W_enc,
        "training step": step_of(plain(size, x.device), x),
        "training step, precision=bf16_select": step_of(plain(size, x.device, precision="bf16_select"), x),
        f"training step, revival=auxk, {DEAD_PCT} % dead": step_of(with_dead_features(size, x.device), x),
        f"training step, revival=auxk, {RELU_DEAD_PCT} % dead by ReLU": step_of(dead_by_relu(size, x, AuxK()), x),
        f"training step, {RELU_DEAD_PCT} % dead by ReLU": step_of(dead_by_relu(size, x), x),
        f"training step, {RELU_DEAD_PCT} % dead by ReLU, their moments denormal": step_of(
            dead_by_relu(size, x, moments=DENORMAL), x
        ),
        "training step, dense autograd twin": step_of(plain(size, x.device, kind=DenseTopK), x),
    }


def plain(size: Size, device: torch.device, kind: type[TopK] = TopK, precision: str = "float32") -> Trainer:
    """A trainer without revival."""
    return Trainer(topk(size, device, kind, precision), config(size))


def topk(size: Size, device: torch.device, kind: type[TopK] = TopK, precision: str = "float32") -> TopK:
    scale = size.d_model**0.5  # of data at unit scale
    return kind(size.d_model, size.n_features, size.k, scale=scale, precision=precision).to(device)


def config(size: Size) -> TrainConfig:
    return TrainConfig(steps=ENDLESS, n_tokens=0, batch_size=size.batch)


def step_of(trainer: Trainer, x: Tensor) -> Case:
    return lambda: trainer.train_step(x)


def with_dead_features(size: Size, device: torch.device) -> Trainer:
    """A trainer with AuxK, to which DEAD_PCT percent of the features have not fired for a long time.

    Their encoder directions are made short: they stay below a token's k largest, so dead, yet half of their
    pre-activations are positive, so that AuxK has something to reconstruct with.
    """
    trainer = Trainer(topk(size, device), replace(config(size), lr=NO_RATE), AuxK())
    dead = size.n_features * DEAD_PCT // 100
    shorten(trainer.sae.W_enc[:, :dead])
    forget(trainer, dead)
    return trainer


def dead_by_relu(size: Size, x: Tensor, revival: Revival | None = None, moments: float = 0) -> Trainer:
    """A trainer of which RELU_DEAD_PCT percent of the features are positive on no token of x, and have such moments.

    Without a revival it is at its first step, and drops denormal ones at the hundredth, which no measurement reaches.
    """
    trainer = Trainer(topk(size, x.device), replace(config(size), lr=NO_RATE), revival)
    dead = size.n_features * RELU_DEAD_PCT // 100
    with torch.no_grad():
        trainer.sae.b_enc[:dead] = -1e6
    trainer.train_step(x)
    for name in ("W_enc", "b_enc", "W_dec"):
        for moment in MOMENTS:
            trainer.optimizer.state[trainer.optimised[name]][moment][:dead] = moments
    if revival:
        forget(trainer, dead)
    return trainer


def forget(trainer: Trainer, dead: int) -> None:
    """Bring a trainer to a step at which the first `dead` features have not fired for a long time."""
    trainer.step = trainer.cfg.dead_window // trainer.cfg.batch_size + 1
    trainer.last_fired.fill_(trainer.tokens)[:dead] = 0


@torch.no_grad()
def shorten(directions: Tensor) -> None:
    """Make encoder directions so short that their features are never among a token's k largest."""
    directions *= 0.1


def death_at_init(size: Size, chunks: Sequence[Tensor]) -> Case:
    """Fates of all features on chunks [tokens, d_model], without centering."""
    sae = topk(size, chunks[0].device)
    off = Affine(torch.zeros(size.d_model, device=chunks[0].device))
    return lambda: count_fates(fate_counter(sae), sae, off, chunks)
