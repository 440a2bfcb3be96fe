"""The training loop: steps, death curves, checkpoints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers.config import TrainConfig
from sae_outliers.files import written_whole
from sae_outliers.metrics import MetricsFile, Point
from sae_outliers.progress import Progress
from sae_outliers.sae.autoencoder import SparseAutoencoder

Batches = Callable[[int], Iterator[Tensor]]  # from a step on: batches [batch_size, d_model] of what the SAE sees
Measure = Callable[[], Point]  # figures of the SAE as it is, on the evaluation tokens


class Trainer:
    """One SAE in training: Adam, warm-up and linear decay, unit-norm decoder rows, counters of what fired.

    All of its state is in the checkpoint, and the batches follow from the step, so that a resumed run gives bitwise
    the same weights as an uninterrupted one on the same CPU.
    """

    def __init__(self, sae: SparseAutoencoder, cfg: TrainConfig, scale: float) -> None:
        self.sae, self.cfg, self.scale = sae, cfg, scale
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=cfg.lr, fused=True)
        self.step = 0
        self.loss: Tensor | None = None  # of the last step; on the device, for reading it waits for the step
        self.last_fired = torch.zeros(sae.n_features, dtype=torch.int64, device=sae.W_dec.device)  # in tokens

    @property
    def tokens(self) -> int:
        return self.step * self.cfg.batch_size

    def learning_rate(self) -> float:
        """Linear warm-up, constant, linear decay to 0 from `decay_from` of the steps on."""
        cfg = self.cfg
        warmup = min(1.0, (self.step + 1) / max(1, cfg.warmup_steps))
        decay_start = cfg.decay_from * cfg.steps
        decay = min(1.0, (cfg.steps - self.step) / max(1.0, cfg.steps - decay_start))
        return cfg.lr * warmup * decay

    def train_step(self, x: Tensor) -> None:
        """One optimiser step on x [batch_size, d_model]."""
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        output = self.sae.training_step(x, self.scale)
        output.loss.backward()
        self.sae.remove_parallel_gradient()
        self.optimizer.step()
        self.sae.normalize_decoder()
        self.step += 1
        self.last_fired.masked_fill_(output.fired, self.tokens)
        self.loss = output.loss.detach()

    def last_loss(self) -> float | None:
        """The loss of the last step; None before the first."""
        return None if self.loss is None else self.loss.item()

    def dead_pct_window(self) -> float | None:
        """Percent of features that did not fire in the last `dead_window` training tokens; None before there are."""
        if self.tokens < self.cfg.dead_window:
            return None
        return 100 * (self.last_fired <= self.tokens - self.cfg.dead_window).double().mean().item()

    def save(self, path: Path) -> None:
        tensors = {f"sae.{name}": p.detach() for name, p in self.sae.named_parameters()}
        tensors["last_fired"] = self.last_fired
        for name, p in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        state = {"step": json.dumps(self.step), "loss": json.dumps(self.last_loss())}
        with written_whole(path) as beside:
            save_file({k: v.contiguous() for k, v in tensors.items()}, beside, metadata=state)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        device = str(self.sae.W_dec.device)
        with safe_open(path, framework="pt", device=device) as file:
            self.step, loss = (json.loads(file.metadata()[key]) for key in ("step", "loss"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.loss = None if loss is None else torch.tensor(loss, device=device)
        self.last_fired = tensors["last_fired"]
        for name, p in self.sae.named_parameters():
            p.copy_(tensors[f"sae.{name}"])
            prefix = f"adam.{name}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                self.optimizer.state[p] = state


def train(
    trainer: Trainer, batches: Batches, measure: Measure, metrics: MetricsFile, checkpoint: Path, title: str
) -> None:
    """Train to the end of `trainer.cfg.steps`, from `checkpoint` if it exists.

    A point of the death curves is written every `eval_every` steps, at step 0 and after the last step.
    """
    if checkpoint.is_file():
        trainer.load(checkpoint)
    metrics.drop_from(trainer.step)
    with Progress(title, trainer.cfg.steps, "steps") as progress:
        _loop(trainer, batches(trainer.step), measure, metrics, checkpoint, progress)


def _loop(
    trainer: Trainer,
    batches: Iterator[Tensor],
    measure: Measure,
    metrics: MetricsFile,
    checkpoint: Path,
    progress: Progress,
) -> None:
    cfg = trainer.cfg
    while True:
        if trainer.step % cfg.checkpoint_every == 0 and trainer.step > 0:
            trainer.save(checkpoint)
        if trainer.step % cfg.eval_every == 0 or trainer.step == cfg.steps:
            point = {
                "step": trainer.step,
                "tokens": trainer.tokens,
                "loss": trainer.last_loss(),
                "lr": trainer.learning_rate(),
            }
            metrics.write(point | measure() | {"dead_pct_window": trainer.dead_pct_window()})
        if trainer.step == cfg.steps:
            return
        trainer.train_step(next(batches))
        progress.update(trainer.step)
