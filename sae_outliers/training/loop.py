"""Joint training: several SAEs on one stream of batches, with death curves and checkpoints."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sae_outliers.results.curves import MetricsFile, Point
from sae_outliers.results.layout import CHECKPOINT_DIGESTS
from sae_outliers.training.stack import Stack, stacks
from sae_outliers.training.trainer import Trainer
from sae_outliers.utils.files import atomic_write, file_digest, remove_leftovers, write_json
from sae_outliers.utils.preemption import defer_preemption
from sae_outliers.utils.progress import Progress

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[Tensor]]  # from a step on: batches [batch_size, d_model]
Measure = Callable[[int], Point]  # figures of the SAE as it is, after this many steps, on the evaluation tokens


@dataclass
class TrainingRun:
    """One SAE of a joint training: its trainer, its inputs, its measurements, its files."""

    trainer: Trainer
    to_sae_input: Callable[[Tensor], Tensor]  # its centering, on a batch [batch_size, d_model]
    measure: Measure
    metrics: MetricsFile
    checkpoint: Path

    def begin(self) -> None:
        """Resume from the checkpoint, if there is one that is as it was written with the curves before it."""
        remove_leftovers(self.checkpoint.parent)
        if self.checkpoint.is_file() and not self._resume():
            log.warning("%s or metrics.jsonl beside it is damaged: training begins anew", self.checkpoint)
            self.checkpoint.unlink()  # first: without digests beside it, it would be taken for an earlier version's
            self._digest_file.unlink(missing_ok=True)
            self.metrics.forget()
        elif self.trainer.step == 0:
            self.metrics.forget()
        self.metrics.drop_from(self.trainer.step)
        self._write_point_if_due()

    def follow_step(self) -> None:
        """After a step, write a checkpoint and a point of the curves, where one is due."""
        if self.trainer.step % self.trainer.cfg.checkpoint_every == 0:
            self.save()
        self._write_point_if_due()

    def _resume(self) -> bool:
        """Load the checkpoint; return False, with nothing loaded, if it or the curves before it are damaged."""
        try:
            self.metrics.points()
            if self._digest_file.is_file():
                state = self._digests()[file_digest(self.checkpoint)]
                if self.metrics.digest_before(state["step"]) != state["metrics"]:
                    return False
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        try:
            self.trainer.load(self.checkpoint)
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,
        ) as error:  # of a version without digests
            raise ValueError(
                f"{self.checkpoint} is damaged ({error}): delete it to train from the beginning"
            ) from error
        return True

    def save(self) -> None:
        """Write the checkpoint and, before it is in its place, its digest with that of the curves before it."""
        step = self.trainer.step
        with atomic_write(self.checkpoint) as beside:
            self.trainer.save(beside)
            now = {file_digest(beside): {"step": step, "metrics": self.metrics.digest_before(step)}}
            # that of the checkpoint which is still in place: a kill may leave it there
            write_json(self._digest_file, now | dict(list(self._digests().items())[:1]))

    @property
    def _digest_file(self) -> Path:
        return self.checkpoint.with_name(CHECKPOINT_DIGESTS)

    def _digests(self) -> dict[str, Any]:
        """Return step and curves by digest of the checkpoint, the newest first; none from an earlier version."""
        if not self._digest_file.is_file():
            return {}
        found: dict[str, Any] = json.loads(self._digest_file.read_text())
        return found

    def _write_point_if_due(self) -> None:
        trainer, cfg = self.trainer, self.trainer.cfg
        if trainer.step % cfg.eval_every == 0 or trainer.step == cfg.steps:
            point: Point = {
                "step": trainer.step,
                "tokens": trainer.tokens,
                "loss": trainer.last_loss(),
                "lr": cfg.lr * trainer.schedule(),
            }
            self.metrics.write(point | self.measure(trainer.step) | {"dead_pct_window": trainer.dead_pct_window()})


class Together:
    """Runs that take each step in one computation; one by itself takes it as ever."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self.runs = runs
        self._stack = Stack([run.trainer for run in runs]) if len(runs) > 1 else None

    def train_step(self, step: int, x: Tensor) -> None:
        """Take step `step` on a batch [batch_size, d_model], if it is the next one of these runs."""
        trainer = self.runs[0].trainer
        if not trainer.step == step < trainer.cfg.steps:
            return
        inputs = [run.to_sae_input(x) for run in self.runs]
        if self._stack:
            self._stack.train_step(inputs)
        else:
            trainer.train_step(inputs[0])
        for run in self.runs:
            run.follow_step()


def train(runs: Sequence[TrainingRun], batches: Batches, title: str) -> None:
    """Train every run to the end of its steps, each from its checkpoint if it has one, on one read of the batches.

    A run gets the weights that it would get alone, but for rounding where it trains in a stack. A point of the death
    curves is written every `eval_every` steps, at step 0 and after the last step. On a preemption signal every run
    leaves a checkpoint of its last step.
    """
    for run in runs:
        run.begin()
    start = min(run.trainer.step for run in runs)
    end = max(run.trainer.cfg.steps for run in runs)
    groups = [Together([runs[i] for i in indices]) for indices in stacks([run.trainer for run in runs])]
    stream = batches(start)
    with Progress(title, end, "steps") as progress, defer_preemption() as signal:
        for step in range(start, end):
            x = next(stream)
            for group in groups:
                group.train_step(step, x)
            progress.update(step + 1)
            if signal.received:
                for run in runs:
                    run.save()
                signal.deliver()
