"""One layer of one model under one condition, from stored activations to the record."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch.nn.functional as F
from filelock import FileLock
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor

from sae_outliers import theory
from sae_outliers.activations.extract import extract, store_dir, training_tokens
from sae_outliers.activations.store import LayerFiles, LayerTokens
from sae_outliers.centering import get_centering
from sae_outliers.config import RunConfig
from sae_outliers.device import resolve_device
from sae_outliers.evaluate import Evaluation, count_fates, evaluate
from sae_outliers.fates import FateCounter, alignment
from sae_outliers.files import digest, written_whole
from sae_outliers.metrics import MetricsFile, Point
from sae_outliers.preprocessing import PREPROCESSINGS, get_preprocessing
from sae_outliers.provenance import device_name, git_commit, peak_memory_mb, versions
from sae_outliers.records import SCHEMA_VERSION, Record, is_finished, run_dir, write_record
from sae_outliers.sae.autoencoder import SparseAutoencoder
from sae_outliers.sae.folding import folded_encoder, save_sae
from sae_outliers.severity import Moments, effective_rank, geometric_median, moments, outlier_dims
from sae_outliers.tracking import Tracker, start_tracker
from sae_outliers.train import Trainer, train

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"  # there only while a job is under way

FINAL_COLUMNS = (
    "dead_pct_final_topk",
    "dead_pct_final_relu",
    "dead_pct_final_window",
    "fvu",
    "l0",
    "b_dec_distance",
    "b_dec_cos",
)

# they say where a run happens and how it is watched, not what comes out of it
NOT_IDENTITY = ("results_dir", "device", "tracker", "group", "task", "layer")


def run_id(cfg: RunConfig, layer: int) -> str:
    """A digest of all that determines the result of `layer` under `cfg`."""
    identity: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for key in NOT_IDENTITY:
        identity.pop(key)
    for key in ("first_layer", "last_layer"):
        identity["model"].pop(key)
    identity["train"].pop("checkpoint_every")
    if cfg.train.steps == 0:
        identity.pop("train")
    return digest(identity | {"layer": layer, "schema": SCHEMA_VERSION})


def directory_of(cfg: RunConfig, layer: int) -> Path:
    return run_dir(Path(cfg.results_dir), cfg.model.name, layer, run_id(cfg, layer))


def run_layer(cfg: RunConfig, layer: int) -> Path:
    """Run one job to its record, or recognise that it is finished; returns its folder, which then holds it.

    A job that was interrupted goes on from its checkpoint. Two processes never work on the same job: the second
    waits and then finds it finished.
    """
    directory = directory_of(cfg, layer)
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        if is_finished(directory):
            log.info("%s layer %d, centering %s: finished before", cfg.model.name, layer, cfg.centering.name)
        else:
            resolved = OmegaConf.to_yaml(OmegaConf.merge(cfg, {"layer": layer}), resolve=True)
            (directory / "config.yaml").write_text(resolved)
            extract(cfg, [layer])
            tracker = start_tracker(cfg, layer, directory.name)
            try:
                record = Job(cfg, layer, directory, tracker).run()
                write_record(directory, record)
            except BaseException:
                tracker.finish({}, exit_code=1)
                raise
            (directory / CHECKPOINT).unlink(missing_ok=True)
            tracker.finish({k: v for k, v in vars(record).items() if isinstance(v, int | float)})
    return directory


@dataclass
class Severity:
    """Moments of a layer's evaluation tokens.

    Attributes:
        seen: of the preprocessed tokens that the SAE gets to see, with their covariance.
        plain, special: {"postln": ..., "raw": ...} without and with special tokens.
    """

    seen: Moments
    plain: dict[str, Moments]
    special: dict[str, Moments]


class Job:
    """The steps of one job, which share its tokens, centering and SAE; the order is that of `run`."""

    def __init__(self, cfg: RunConfig, layer: int, directory: Path, tracker: Tracker) -> None:
        self.cfg, self.layer, self.directory, self.tracker = cfg, layer, directory, tracker
        self.device = resolve_device(cfg.device)
        self.preprocess = get_preprocessing(cfg.preprocessing)
        files = LayerFiles(store_dir(cfg), layer)
        self.tokens = LayerTokens(files, cfg.n_eval, training_tokens(cfg), cfg.special_tokens)

    def run(self) -> Record:
        start = time.monotonic()
        severity = self.measure_severity()
        self.mean, self.variance = severity.seen.mean.float(), severity.seen.variance.sum().item()
        self.centering = get_centering(self.cfg.centering.name, severity.seen)
        self.sae = self.new_sae(severity.seen)
        sae_input = self.moments_of_sae_input()
        initial, initial_alignment = count_fates(self.sae, self.centering, self.eval_tokens()), self.alignment()
        dead_pct_window = self.train(scale=sae_input.variance.sum().sqrt().item())
        final = self.evaluate() if self.cfg.train.steps else None
        features = feature_columns("init", initial, initial_alignment)
        if final:
            features |= feature_columns("final", final.fates, self.alignment())
        self.write_features(features)
        columns = self.identity_columns() | self.severity_columns(severity) | {"gamma_sae_input": sae_input.gamma}
        columns |= self.initial_columns(initial, initial_alignment, sae_input.gamma)
        columns |= self.final_columns(final, dead_pct_window)
        if self.cfg.train.steps:  # an untrained SAE follows from its seed
            save_sae(self.directory / "sae.safetensors", self.sae, self.centering, columns)
        return Record(**columns, **self.provenance_columns(time.monotonic() - start))

    def eval_tokens(self) -> Iterator[Tensor]:
        """The preprocessed evaluation tokens that the SAE sees, before centering."""
        return (self.preprocess(x.to(self.device)) for x in self.tokens.eval_chunks())

    def measure_severity(self) -> Severity:
        plain = {name: Moments() for name in PREPROCESSINGS}
        special = {name: Moments() for name in PREPROCESSINGS}
        seen = Moments(covariance=True)
        for rows, is_special in self.tokens.eval_rows():
            ordinary = ~is_special.to(self.device)
            for name, preprocess in PREPROCESSINGS.items():
                x = preprocess(rows.to(self.device))
                special[name].update(x)
                plain[name].update(x[ordinary])
                if name == self.cfg.preprocessing:
                    seen.update(x if self.cfg.special_tokens else x[ordinary])
        return Severity(seen, plain, special)

    def new_sae(self, seen: Moments) -> SparseAutoencoder:
        sae_class = get_class(self.cfg.sae._target_)
        d_model = self.tokens.d_model
        sae: SparseAutoencoder = sae_class(
            d_model, self.cfg.sae.n_features, self.cfg.sae.k, self.cfg.sae.l1, self.cfg.seed
        )
        if self.cfg.centering.name == "geometric_median":
            sae.b_dec.data = geometric_median(self.eval_tokens, seen.mean).float()
        return sae.to(self.device)

    def moments_of_sae_input(self) -> Moments:
        """Of what the encoder multiplies: after preprocessing, centering and the initial b_dec."""
        return moments(self.centering.apply(x) - self.sae.b_dec.detach() for x in self.eval_tokens())

    def evaluate(self) -> Evaluation:
        return evaluate(self.sae, self.centering, self.eval_tokens(), self.variance)

    def alignment(self) -> Tensor:
        """cos(encoder direction, μ) of each feature, both in the space of the preprocessed activations."""
        return alignment(folded_encoder(self.sae, self.centering), self.mean)

    def train(self, scale: float) -> float | None:
        """Train to the end and write the curves; the percentage of features not fired in the last window, if known."""
        cfg = self.cfg.train
        if cfg.steps == 0:
            return None
        metrics = MetricsFile(self.directory / "metrics.jsonl", self.tracker.log)
        trainer = Trainer(self.sae, cfg, scale)
        title = f"{self.cfg.model.name} layer {self.layer} {self.cfg.sae.name} centering {self.cfg.centering.name}"
        checkpoint = self.directory / CHECKPOINT
        train(trainer, self.training_batches, self.measure, metrics, checkpoint, title)
        with written_whole(self.directory / "curves.parquet") as beside:
            metrics.curves().to_parquet(beside, index=False)
        return trainer.dead_pct_window()

    def training_batches(self, start: int) -> Iterator[Tensor]:
        batches = self.tokens.training_batches(self.cfg.train.batch_size, self.cfg.seed, start)
        return (self.centering.apply(self.preprocess(x.to(self.device))) for x in batches)

    def measure(self) -> Point:
        """The figures of a point of the death curves."""
        now = self.evaluate()
        return {
            "dead_pct_topk": now.fates.dead_pct_topk,
            "dead_pct_relu": now.fates.dead_pct_relu,
            "fvu": now.fvu,
            "l0": now.l0,
            **self.bias_figures(),
        }

    def bias_figures(self) -> dict[str, float]:
        """How far the SAE's bias has come on its way to the mean; the centering's shift counts as part of the bias."""
        bias = self.centering.undo(self.sae.b_dec.detach())
        return {
            "b_dec_distance": ((bias - self.mean).norm() / self.mean.norm()).item(),
            "b_dec_cos": F.cosine_similarity(bias, self.mean, dim=0).item(),
        }

    def write_features(self, columns: dict[str, Tensor]) -> None:
        frame = pd.DataFrame({name: tensor.detach().cpu().numpy() for name, tensor in columns.items()})
        with written_whole(self.directory / "features.parquet") as beside:
            frame.rename_axis("feature").reset_index().to_parquet(beside, index=False)

    def identity_columns(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "run_id": self.directory.name,
            "model": cfg.model.name,
            "domain": cfg.model.domain,
            "layer": self.layer,
            "last_layer": cfg.model.last_layer,
            "sae": cfg.sae.name,
            "centering": cfg.centering.name,
            "preprocessing": cfg.preprocessing,
            "special_tokens": cfg.special_tokens,
            "n_eval": cfg.n_eval,
            "n_features": cfg.sae.n_features,
            "k": cfg.sae.k,
            "seed": cfg.seed,
            "data": cfg.data.name,
            "train_steps": cfg.train.steps,
            "train_batch_size": cfg.train.batch_size,
            "n_train": self.tokens.n_train,
            "lr": cfg.train.lr,
            "warmup_steps": cfg.train.warmup_steps,
            "decay_from": cfg.train.decay_from,
            "dead_window": cfg.train.dead_window,
            "l1": cfg.sae.l1,
            "d_model": self.tokens.d_model,
        }

    def severity_columns(self, severity: Severity) -> dict[str, Any]:
        seen = severity.special if self.cfg.special_tokens else severity.plain
        return {
            "gamma": seen["postln"].gamma,
            "gamma_raw": seen["raw"].gamma,
            "gamma_without_special": severity.plain["postln"].gamma,
            "gamma_raw_without_special": severity.plain["raw"].gamma,
            "gamma_with_special": severity.special["postln"].gamma,
            "gamma_raw_with_special": severity.special["raw"].gamma,
            "effective_rank": effective_rank(severity.seen.scatter),
            "outlier_dims": [[dim.index, dim.ratio] for dim in outlier_dims(severity.seen)],
        }

    def initial_columns(self, initial: FateCounter, cosine: Tensor, gamma: float) -> dict[str, Any]:
        n_eval, n_features, k = self.cfg.n_eval, self.cfg.sae.n_features, self.cfg.sae.k
        dead = initial.selected == 0
        return {
            "dead_pct_init_topk": initial.dead_pct_topk,
            "dead_pct_init_relu": initial.dead_pct_relu,
            "alignment_dead_init": cosine[dead].mean().item() if dead.any() else None,
            "theory_pct_topk": 100 * float(theory.dead_by_topk(gamma, n_eval, n_features, k)),
            "theory_pct_relu": 100 * float(theory.dead_by_relu(gamma, n_eval)),
            "theory_pct_topk_small_gamma": 100 * float(theory.dead_by_topk_small_gamma(gamma, n_eval, n_features, k)),
        }

    def final_columns(self, final: Evaluation | None, dead_pct_window: float | None) -> dict[str, Any]:
        if final is None:
            return dict.fromkeys(FINAL_COLUMNS)
        figures = (
            final.fates.dead_pct_topk,
            final.fates.dead_pct_relu,
            dead_pct_window,
            final.fvu,
            final.l0,
        )
        return dict(zip(FINAL_COLUMNS, (*figures, *self.bias_figures().values()), strict=True))

    def provenance_columns(self, seconds: float) -> dict[str, Any]:
        return {
            "git_commit": git_commit(),
            "device": device_name(self.device),
            "versions": versions(),
            "seconds": round(seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
        }


def feature_columns(when: str, fates: FateCounter, cosine: Tensor) -> dict[str, Tensor]:
    """Columns of features.parquet, a row per feature; `when` is init or final.

    fate: a `fates.Fate`. selected: evaluation tokens on which it was. highest: its largest pre-activation.
    alignment: cos(encoder direction, μ).
    """
    columns = {"fate": fates.fates, "selected": fates.selected, "highest": fates.highest, "alignment": cosine}
    return {f"{name}_{when}": tensor for name, tensor in columns.items()}
