"""One SAE in training: optimiser steps, what fired, checkpoints."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_outliers.config import TrainConfig
from sae_outliers.sae.base import SparseAutoencoder, StepOutput
from sae_outliers.training.revival import Revival
from sae_outliers.utils.device import memory_for
from sae_outliers.utils.files import atomic_write

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's

# Adam's moments of a feature that gets no gradient shrink until they are denormal, and stay so: numbers below 1e-38,
# with which a CPU computes 20 times slower. A moment this small moves no weight
NEGLIGIBLE = 1e-30
STEPS_BETWEEN = 100  # in which the first moment shrinks by 3e-5


class Trainer:
    """One SAE in training: Adam, warm-up and linear decay, unit-norm decoder rows, counters of what fired.

    All of its state is in the checkpoint, and the batches follow from the step, so that a resumed run gives bitwise
    the same weights as an uninterrupted one on the same CPU.

    Raises:
        ValueError: the revival is not defined for this SAE.
    """

    def __init__(self, sae: SparseAutoencoder, cfg: TrainConfig, revival: Revival | None = None) -> None:
        self.sae, self.cfg, self.revival = sae, cfg, revival or Revival()
        self.revival.check(sae)
        # to find the dead features waits for the GPU, so only a revival that adds to the loss has it done each step
        self.revives_by_loss = type(self.revival).loss is not Revival.loss
        self.optimised = dict(sae.named_parameters()) | {"W_enc": self._rows_of_W_enc()}
        others = [parameter for name, parameter in self.optimised.items() if name != "b_dec"]
        self.lrs = [cfg.lr, 0.0 if cfg.freeze_b_dec else cfg.lr if cfg.b_dec_lr is None else cfg.b_dec_lr]
        groups = [{"params": others}, {"params": [sae.b_dec]}]
        self.optimizer = torch.optim.Adam(groups, lr=cfg.lr, fused=True)
        self.step = 0
        self.loss: Tensor | None = None  # of the last step, kept on the device: `.item()` would synchronise
        self.last_fired = torch.zeros(sae.n_features, dtype=torch.int64, device=sae.W_dec.device)  # in tokens

    @property
    def tokens(self) -> int:
        return self.step * self.cfg.batch_size

    def schedule(self) -> float:
        """Return the factor of the learning rates: linear warm-up, constant, linear decay to 0 from `decay_from` on."""
        cfg = self.cfg
        warmup = min(1.0, (self.step + 1) / max(1, cfg.warmup_steps))
        decay_start = cfg.decay_from * cfg.steps
        decay = min(1.0, (cfg.steps - self.step) / max(1.0, cfg.steps - decay_start))
        return warmup * decay

    def train_step(self, x: Tensor) -> None:
        """Take one optimiser step on x [batch_size, d_model]. Raise ValueError where the memory does not suffice."""
        with memory_for(f"a training step of {self.cfg.batch_size} tokens", "lower train.batch_size or sae.n_features"):
            self._take_step(x)

    def _take_step(self, x: Tensor) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * self.schedule()
        self._follow_sae()
        self.optimizer.zero_grad(set_to_none=True)
        self.sae.W_enc.grad = None  # the optimiser knows only its rows
        output = self.sae.training_step(x)
        loss = output.loss
        if self.revives_by_loss:
            loss = loss + self.revival.loss(self.sae, x, output, self.dead())
        loss.backward()
        if self.sae.unit_norm_decoder:
            self.sae.remove_parallel_gradient()
        self.optimised["W_enc"].grad = None if self.sae.W_enc.grad is None else self.sae.W_enc.grad.T
        self.optimizer.step()
        if self.sae.unit_norm_decoder:
            self.sae.normalize_decoder()
        self.step += 1
        drop_negligible(self.optimizer, self.step)
        self.last_fired.masked_fill_(output.fired, self.tokens)
        self.loss = output.loss.detach()
        self.revive(x, output)

    def revive(self, x: Tensor, output: StepOutput) -> None:
        """Let the revival change weights after the step that was just taken on x [batch_size, d_model]."""
        reinitialised = self.revival.after_step(self.sae, x, output, self.step, self.dead)
        if reinitialised is not None:
            self.reset_features(reinitialised)

    def last_loss(self) -> float | None:
        """Return the loss of the last step, without the revival's part; None before the first."""
        return None if self.loss is None else self.loss.item()

    def dead(self) -> Tensor:
        """Return the indices of features that did not fire in the last `dead_window` tokens; none before so many."""
        if self.tokens < self.cfg.dead_window:
            return self.last_fired.new_zeros(0)
        return (self.last_fired <= self.tokens - self.cfg.dead_window).nonzero()[:, 0]

    def dead_pct_window(self) -> float | None:
        """Return the percentage of features that did not fire in the last `dead_window` tokens; None before so many."""
        return None if self.tokens < self.cfg.dead_window else 100 * len(self.dead()) / self.sae.n_features

    def reset_features(self, features: Tensor) -> None:
        """Set the optimiser's moments of these features (indices) to 0, and count them as fired now."""
        self.last_fired[features] = self.tokens
        for name in ("W_enc", "b_enc", "W_dec"):
            for moment in MOMENTS:
                self.optimizer.state[self.optimised[name]][moment][features] = 0

    def _follow_sae(self) -> None:
        """Bring along what is the trainer's own, where the SAE was moved or its type changed since the last step."""
        W_enc, rows = self.sae.W_enc, self.optimised["W_enc"]
        if (rows.device, rows.dtype, rows.data_ptr()) == (W_enc.device, W_enc.dtype, W_enc.data_ptr()):
            return
        rows.grad, rows.data = None, W_enc.detach().T
        self.last_fired = self.last_fired.to(W_enc.device)
        for p, state in self.optimizer.state.items():
            for name, moment in state.items():  # Adam keeps its step in float32
                state[name] = moment.to(p.device) if name == "step" else moment.to(p)

    def _rows_of_W_enc(self) -> nn.Parameter:
        """Return the same storage viewed as [n_features, d_model]: fused Adam copies what is not contiguous."""
        return nn.Parameter(self.sae.W_enc.detach().T)

    def save(self, path: Path) -> None:
        """Write the checkpoint: weights, the optimiser's state, step, loss and what fired when."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        tensors["last_fired"] = self.last_fired
        for name, p in self.optimised.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        state = {"step": json.dumps(self.step), "loss": json.dumps(self.last_loss())}
        with atomic_write(path) as beside:
            save_file({k: v.contiguous() for k, v in tensors.items()}, beside, metadata=state)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Resume from a checkpoint that `save` wrote."""
        device = str(self.sae.W_dec.device)
        with safe_open(path, framework="pt", device=device) as file:
            self.step, loss = (json.loads(file.metadata()[key]) for key in ("step", "loss"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.loss = None if loss is None else torch.tensor(loss, device=device)
        self.last_fired = tensors["last_fired"]
        self.sae.load_state_dict({name: tensors[f"sae.{name}"] for name in self.sae.state_dict()})
        for name, p in self.optimised.items():
            prefix = f"adam.{name}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                self.optimizer.state[p] = state


@torch.no_grad()
def drop_negligible(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set what is negligible of an optimiser's moments to 0, where it is time for that after step `step`."""
    if step % STEPS_BETWEEN:
        return
    for state in optimizer.state.values():
        for name in MOMENTS:
            torch.hardshrink(state[name], NEGLIGIBLE, out=state[name])
