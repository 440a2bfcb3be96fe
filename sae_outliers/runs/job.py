"""One layer of one model under one condition, from its tokens to the record."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from sae_outliers.activations.extract import store_identity
from sae_outliers.config import RunConfig, options_of, sae_options
from sae_outliers.models.layer_spec import last_layer
from sae_outliers.results.curves import MetricsFile, Point
from sae_outliers.results.record import SCHEMA_VERSION, Record, run_dir
from sae_outliers.runs.layer_data import EvalData
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder, sae_type
from sae_outliers.sae.evaluation import (
    Evaluation,
    FateCounter,
    alignment,
    compare_selection,
    count_fates,
    evaluate,
    fate_counter,
)
from sae_outliers.sae.initialization import initialise
from sae_outliers.sae.io import folded_encoder, save_sae
from sae_outliers.stats import theory
from sae_outliers.stats.moments import effective_rank, outlier_dims
from sae_outliers.stats.transforms import CENTERINGS, Affine
from sae_outliers.tracking.base import Tracker
from sae_outliers.training.loop import TrainingRun
from sae_outliers.training.revival import revival_type
from sae_outliers.training.trainer import Trainer
from sae_outliers.utils.files import atomic_write, digest
from sae_outliers.utils.provenance import device_name, git_commit, peak_memory_mb, versions

CHECKPOINT = "checkpoint.safetensors"  # there only while a job is under way

FINAL_COLUMNS = (
    "dead_pct_final",
    "dead_pct_final_topk",
    "dead_pct_final_relu",
    "dead_pct_final_window",
    "fvu",
    "l0",
    "b_dec_distance",
    "b_dec_cos",
)

SELECTION_COLUMNS = ("select_pct_changed", "select_pct_tokens_changed", "select_fvu_change")

# they say where a run happens and how it is watched, not what comes out of it
NOT_IDENTITY = (
    *("results_dir", "device", "tracker", "group", "task", "store", "check", "trust_remote_code"),
    *("dry_run", "wait", "pack", "site"),
    *("model", "name", "path"),  # what of them matters is in the stream's identity
    *("layer", "variants"),  # of several runs
)
# they say nothing about an SAE that is not trained
OF_TRAINING = ("train", "revival", "precision")


def identity_of(cfg: RunConfig) -> dict[str, Any]:
    """All that determines the results under `cfg`, but for the layer."""
    identity: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    for key in NOT_IDENTITY:
        identity.pop(key)
    identity["data"] = identity["data"]["rescale_mean"]
    identity["train"].pop("checkpoint_every")
    identity["sae_seed"] = sae_seed(cfg)
    if cfg.train.steps == 0:
        for key in OF_TRAINING:
            identity.pop(key)
    return identity | {"stream": store_identity(cfg), "schema": SCHEMA_VERSION}


def sae_seed(cfg: RunConfig) -> int:
    return cfg.seed if cfg.sae_seed is None else cfg.sae_seed


def directory_of(cfg: RunConfig, layer: int) -> Path:
    return directories_of(cfg, [layer])[0]


def directories_of(cfg: RunConfig, layers: Iterable[int]) -> list[Path]:
    """The folder of each layer's run, named by a digest of all that determines its result."""
    identity = identity_of(cfg)  # which takes a millisecond, and is the same for all
    name, results_dir = cfg.model.name, Path(cfg.results_dir)
    return [run_dir(results_dir, name, layer, digest(identity | {"layer": layer})) for layer in layers]


class Job:
    """One run of a layer: prepare, train, finish; its methods stand in that order."""

    def __init__(self, cfg: RunConfig, layer: int, directory: Path, tracker: Tracker, data: EvalData) -> None:
        self.cfg, self.layer, self.directory, self.tracker, self.data = cfg, layer, directory, tracker, data

    def condition(self) -> str:
        cfg = self.cfg
        return f"{cfg.sae.name} {cfg.centering.name}" + ("" if cfg.revival.name == "none" else f" {cfg.revival.name}")

    def prepare(self, sae: SparseAutoencoder | None = None) -> None:
        """Centering and the SAE: a new one, or `sae` where only its fates at initialisation are wanted."""
        self.seen = self.data.severity.seen
        self.shift: Tensor | None = None
        if self.cfg.data.rescale_mean is not None:
            shift = (self.cfg.data.rescale_mean / self.seen.gamma - 1) * self.seen.mean
            self.seen, self.shift = self.seen.shifted(shift), shift.float()
        self.mean, self.variance = self.seen.mean.float(), self.seen.variance.sum().item()
        self.centering = CENTERINGS[self.cfg.centering.name](self.seen)
        self.sae_input = self.seen.mapped(self.centering.shift, self.centering.linear)
        self.sae = self.new_sae() if sae is None else sae
        # of what the encoder multiplies
        off_center = self.sae_input.mean - self.sae.b_dec.detach()
        self.gamma_sae_input = (off_center.norm() / self.sae_input.variance.sum().sqrt()).item()
        self.initial, self.initial_alignment = fate_counter(self.sae), self.alignment()
        self.metrics = MetricsFile(self.directory / "metrics.jsonl", self.tracker.log)
        kind = revival_type(self.cfg.revival)
        self.trainer = Trainer(self.sae, self.cfg.train, kind(**options_of(self.cfg.revival, kind)))

    def plant(self, x: Tensor) -> Tensor:
        """Preprocessed tokens, their mean rescaled where the config asks for it."""
        return x if self.shift is None else x + self.shift

    def see(self, x: Tensor) -> Tensor:
        """What the SAE sees of preprocessed tokens [tokens, d_model]."""
        return self.centering.apply(self.plant(x))

    def from_preprocessed(self) -> Affine:
        """The map from preprocessed tokens to what the SAE sees, and back."""
        return (
            self.centering if self.shift is None else replace(self.centering, shift=self.centering.shift - self.shift)
        )

    def eval_tokens(self) -> Iterator[Tensor]:
        """The evaluation tokens before centering."""
        return map(self.plant, self.data.eval_tokens())

    def new_sae(self) -> SparseAutoencoder:
        cfg = self.cfg
        kind = sae_type(cfg.sae)
        scale = self.sae_input.variance.sum().sqrt().item()
        sae = kind(self.data.d_model, scale=scale, seed=sae_seed(cfg), **sae_options(cfg, kind)).to(self.data.device)
        initialise(sae, cfg.init, lambda: map(self.see, self.data.eval_tokens()), self.sae_input, sae_seed(cfg))
        return sae

    def count_initial(self, tokens: Iterable[Tensor]) -> None:
        """Take preprocessed tokens, in chunks [tokens, d_model], into the fates at initialisation."""
        count_fates(self.initial, self.sae, self.centering, map(self.plant, tokens))

    def alignment(self) -> Tensor:
        """cos(encoder direction, μ) of each feature, both in the space of the preprocessed activations."""
        return alignment(folded_encoder(self.sae, self.centering), self.mean)

    def member(self) -> TrainingRun:
        return TrainingRun(self.trainer, self.see, self.measure, self.metrics, self.directory / CHECKPOINT)

    def measure(self) -> Point:
        """The figures of a point of the death curves."""
        now = self.evaluate()
        return {
            "dead_pct": now.dead_pct,
            "dead_pct_topk": now.fates.dead_pct_topk,
            "dead_pct_relu": now.fates.dead_pct_relu,
            "fvu": now.fvu,
            "l0": now.l0,
            **self.bias_figures(),
        }

    def evaluate(self) -> Evaluation:
        return evaluate(self.sae, self.centering, self.eval_tokens(), self.variance)

    def bias_figures(self) -> dict[str, float]:
        """How far the SAE's bias has come on its way to the mean; the centering's shift counts as part of the bias."""
        bias = self.centering.undo(self.sae.b_dec.detach())
        return {
            "b_dec_distance": ((bias - self.mean).norm() / self.mean.norm()).item(),
            "b_dec_cos": F.cosine_similarity(bias, self.mean, dim=0).item(),
        }

    def finish(self, side_by_side: int, seconds: float) -> Record:
        """What the SAE is at the end, in the run's files, and the record to write."""
        trained = self.cfg.train.steps > 0
        final = self.evaluate() if trained else None
        features = feature_columns("init", self.initial, self.initial_alignment)
        if final:
            features |= feature_columns("final", final.fates, self.alignment()) | {"active_final": final.active}
        self.write_features(features)
        columns = self.identity_columns() | self.severity_columns() | self.initial_columns()
        columns |= self.final_columns(final) | self.selection_columns()
        if trained:  # an untrained SAE follows from its seed
            save_sae(self.directory / "sae.safetensors", self.sae, self.from_preprocessed(), columns)
        return Record(**columns, **self.provenance_columns(seconds), side_by_side=side_by_side)

    def write_features(self, columns: dict[str, Tensor]) -> None:
        frame = pd.DataFrame({name: tensor.detach().cpu().numpy() for name, tensor in columns.items()})
        with atomic_write(self.directory / "features.parquet") as beside:
            frame.rename_axis("feature").reset_index().to_parquet(beside, index=False)

    def identity_columns(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "run_id": self.directory.name,
            "model": cfg.model.name,
            "domain": cfg.model.domain,
            "layer": self.layer,
            "last_layer": last_layer(cfg.model),
            "sae": cfg.sae.name,
            "revival": cfg.revival.name,
            "init": cfg.init.name,
            "init_b_dec": cfg.init.b_dec,
            "precision": cfg.precision,
            "centering": cfg.centering.name,
            "preprocessing": cfg.preprocessing,
            "special_tokens": cfg.special_tokens,
            "n_eval": cfg.n_eval,
            "n_features": cfg.sae.n_features,
            "k": cfg.sae.k,
            "seed": cfg.seed,
            "sae_seed": sae_seed(self.cfg),
            "data": cfg.data.name,
            "train_steps": cfg.train.steps,
            "train_batch_size": cfg.train.batch_size,
            "n_train": self.data.n_train,
            "lr": cfg.train.lr,
            "b_dec_lr": cfg.train.lr if cfg.train.b_dec_lr is None else cfg.train.b_dec_lr,
            "warmup_steps": cfg.train.warmup_steps,
            "decay_from": cfg.train.decay_from,
            "dead_window": cfg.train.dead_window,
            "sae_options": json.dumps(
                {k: v for k, v in options_of(cfg.sae, type(self.sae)).items() if k not in ("n_features", "k")}
            ),
            "revival_options": json.dumps(options_of(cfg.revival, type(self.trainer.revival))),
            "planted_gamma": cfg.data.rescale_mean,
            "d_model": self.data.d_model,
        }

    def severity_columns(self) -> dict[str, Any]:
        severity = self.data.severity
        of_tokens = severity.special if self.cfg.special_tokens else severity.plain
        planted = self.cfg.data.rescale_mean
        return {
            "gamma": of_tokens["postln"].gamma if planted is None else self.seen.gamma,
            "gamma_raw": of_tokens["raw"].gamma,
            "gamma_without_special": severity.plain["postln"].gamma,
            "gamma_raw_without_special": severity.plain["raw"].gamma,
            "gamma_with_special": severity.special["postln"].gamma,
            "gamma_raw_with_special": severity.special["raw"].gamma,
            "effective_rank": effective_rank(self.seen.scatter),
            "outlier_dims": [[dim.index, dim.ratio] for dim in outlier_dims(self.seen)],
            "gamma_sae_input": self.gamma_sae_input,
        }

    def initial_columns(self) -> dict[str, Any]:
        n_eval, n_features, k = self.cfg.n_eval, self.cfg.sae.n_features, self.cfg.sae.k
        gamma = self.gamma_sae_input
        dead = self.initial.selected == 0
        return {
            "dead_pct_init_topk": self.initial.dead_pct_topk,
            "dead_pct_init_relu": self.initial.dead_pct_relu,
            "alignment_dead_init": self.initial_alignment[dead].mean().item() if dead.any() else None,
            "theory_pct_topk": 100 * float(theory.dead_by_topk(gamma, n_eval, n_features, k)),
            "theory_pct_relu": 100 * float(theory.dead_by_relu(gamma, n_eval)),
            "theory_pct_topk_small_gamma": 100 * float(theory.dead_by_topk_small_gamma(gamma, n_eval, n_features, k)),
        }

    def final_columns(self, final: Evaluation | None) -> dict[str, Any]:
        if final is None:
            return dict.fromkeys(FINAL_COLUMNS)
        figures = (
            final.dead_pct,
            final.fates.dead_pct_topk,
            final.fates.dead_pct_relu,
            self.trainer.dead_pct_window(),
            final.fvu,
            final.l0,
        )
        return dict(zip(FINAL_COLUMNS, (*figures, *self.bias_figures().values()), strict=True))

    def selection_columns(self) -> dict[str, Any]:
        """With precision=bf16_select: what choosing by bfloat16 changes on the evaluation tokens."""
        if not isinstance(self.sae, TopK) or self.sae.precision == "float32":
            return dict.fromkeys(SELECTION_COLUMNS)
        changed = compare_selection(self.sae, map(self.see, self.data.eval_tokens()))
        return dict(zip(SELECTION_COLUMNS, changed, strict=True))

    def provenance_columns(self, seconds: float) -> dict[str, Any]:
        return {
            "git_commit": git_commit(),
            "device": device_name(self.data.device),
            "versions": versions(),
            "seconds": round(seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(self.data.device), 1),
        }


def feature_columns(when: str, fates: FateCounter, cosine: Tensor) -> dict[str, Tensor]:
    """Columns of features.parquet, a row per feature; `when` is init or final.

    fate: a `fates.Fate`. selected: evaluation tokens on which it was. highest: its largest pre-activation.
    alignment: cos(encoder direction, μ).
    """
    columns = {"fate": fates.fates, "selected": fates.selected, "highest": fates.highest, "alignment": cosine}
    return {f"{name}_{when}": tensor for name, tensor in columns.items()}
