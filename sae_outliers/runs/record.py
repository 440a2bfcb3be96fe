"""The result of one run, one flat row: every column stands beside the formula that fills it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import RunConfig
from sae_outliers.results.record import SCHEMA_VERSION, read_row
from sae_outliers.runs.activations import training_tokens
from sae_outliers.runs.identity import run_settings
from sae_outliers.runs.layer_spec import last_layer
from sae_outliers.runs.measure import Final
from sae_outliers.runs.setup import RunSetup
from sae_outliers.sae.evaluation import SelectionChange
from sae_outliers.stats import theory
from sae_outliers.stats.moments import Moments, effective_rank, outlier_dims
from sae_outliers.utils.provenance import device_name, git_commit, peak_memory_mb, versions


@dataclass(frozen=True)
class Outcome:
    """A finished run: what the columns of its record are computed from. `final` is None where nothing was trained."""

    setup: RunSetup
    final: Final | None
    seconds: float
    side_by_side: int

    @property
    def cfg(self) -> RunConfig:
        return self.setup.cfg

    @property
    def natural(self) -> dict[str, Moments]:
        """Moments by preprocessing, before any γ is planted, of special tokens too if the SAE is given them."""
        severity = self.setup.severity
        return severity.with_special if self.cfg.special_tokens else severity.without_special

    @property
    def gamma(self) -> float:
        return self.natural["postln"].gamma if self.setup.shift is None else self.setup.tokens.gamma

    @property
    def sizes(self) -> tuple[int, int]:
        return self.cfg.sae.n_features, self.cfg.sae.k

    def mean_alignment_of_dead(self) -> float | None:
        dead = self.setup.fates.selected == 0
        return self.setup.alignment[dead].mean().item() if dead.any() else None

    def theory_pct(self, formula: Callable[..., Any], *sizes: int) -> float:
        """Return a closed form for death at initialisation, in percent."""
        return 100 * float(formula(self.setup.gamma_sae_input, self.cfg.n_eval, *sizes))


def column(formula: Callable[[Outcome], Any]) -> Any:
    """A column of the record, empty in records that were written before it was added."""
    return field(default=None, metadata={"formula": formula})


def provenance(formula: Callable[[Outcome], Any]) -> Any:
    """A column about where and how the run took place, which says nothing about the SAE."""
    return field(default=None, metadata={"formula": formula, "provenance": True})


def of_final(formula: Callable[[Final], Any]) -> Any:
    """A column that is empty where nothing was trained."""
    return column(lambda run: None if run.final is None else formula(run.final))


def of_selection(formula: Callable[[SelectionChange], Any]) -> Any:
    """A column of what precision=bf16_select changes beside float32, on the evaluation tokens."""
    return of_final(lambda final: None if final.selection is None else formula(final.selection))


def options(node: Any) -> str:
    """Return the options of an SAE type or a revival as JSON; those that are null are left out."""
    given: dict[str, Any] = OmegaConf.to_container(node)  # type: ignore[assignment]
    own = {key: value for key, value in given.items() if key not in NOT_OPTIONS and value is not None}
    return json.dumps(own)


NOT_OPTIONS = ("name", "_target_", "n_features", "k")


@dataclass(kw_only=True)
class Record:
    """Percentages are 0-100; `gamma` and the like are dimensionless; None: not measured (no training)."""

    # who
    run_id: str = column(lambda run: run.setup.directory.name)
    model: str = column(lambda run: run.cfg.model.name)
    domain: str = column(lambda run: run.cfg.model.domain)
    layer: int = column(lambda run: run.setup.layer)
    last_layer: int = column(lambda run: last_layer(run.cfg.model))
    sae: str = column(lambda run: run.cfg.sae.name)  # topk, relu, batchtopk, ...
    revival: str = column(lambda run: run.cfg.revival.name)
    centering: str = column(lambda run: run.cfg.centering.name)
    # settings: all that determine the result, by option; the columns after it repeat those that one often asks for
    settings: dict[str, Any] = column(lambda run: run_settings(run.cfg))
    preprocessing: str = column(lambda run: run.cfg.preprocessing)
    special_tokens: bool = column(lambda run: run.cfg.special_tokens)
    n_eval: int = column(lambda run: run.cfg.n_eval)
    n_features: int = column(lambda run: run.cfg.sae.n_features)
    k: int = column(lambda run: run.cfg.sae.k)
    seed: int = column(lambda run: run.cfg.seed)  # of the data
    sae_seed: int = column(lambda run: run.setup.sae_seed)
    init: str = column(lambda run: run.cfg.init.name)
    init_b_dec: str = column(lambda run: run.cfg.init.b_dec)
    # the mean was rescaled to this γ; None: as the network made it
    planted_gamma: float | None = column(lambda run: run.cfg.data.rescale_mean)
    data: str = column(lambda run: run.cfg.data.name)
    train_steps: int = column(lambda run: run.cfg.train.steps)
    train_batch_size: int = column(lambda run: run.cfg.train.batch_size)
    n_train: int = column(lambda run: training_tokens(run.cfg))
    lr: float = column(lambda run: run.cfg.train.lr)
    b_dec_lr: float = column(lambda run: run.cfg.train.lr if run.cfg.train.b_dec_lr is None else run.cfg.train.b_dec_lr)
    warmup_steps: int = column(lambda run: run.cfg.train.warmup_steps)
    decay_from: float = column(lambda run: run.cfg.train.decay_from)
    input_scale: str = column(lambda run: run.cfg.train.input_scale)
    freeze_b_dec: bool = column(lambda run: run.cfg.train.freeze_b_dec)
    dead_window: int = column(lambda run: run.cfg.train.dead_window)
    precision: str = column(lambda run: run.cfg.precision)
    sae_options: str = column(lambda run: options(run.cfg.sae))  # JSON, as is the next
    revival_options: str = column(lambda run: options(run.cfg.revival))
    # severity of the activations, before centering
    d_model: int = column(lambda run: run.setup.d_model)
    # post-LN (planted_gamma if there is one), on the SAE's tokens: special ones among them if `special_tokens`
    gamma: float = column(lambda run: run.gamma)
    gamma_raw: float = column(lambda run: run.natural["raw"].gamma)  # likewise, before LayerNorm
    gamma_without_special: float = column(lambda run: run.setup.severity.without_special["postln"].gamma)
    gamma_raw_without_special: float = column(lambda run: run.setup.severity.without_special["raw"].gamma)
    gamma_with_special: float = column(lambda run: run.setup.severity.with_special["postln"].gamma)
    gamma_raw_with_special: float = column(lambda run: run.setup.severity.with_special["raw"].gamma)
    effective_rank: float = column(lambda run: effective_rank(run.setup.tokens.scatter))
    # of the dimensions of the preprocessed tokens, 0 for normal ones
    kurtosis_median: float = column(lambda run: run.setup.severity.kurtosis.excess().median().item())
    kurtosis_max: float = column(lambda run: run.setup.severity.kurtosis.excess().max().item())
    # [index, |μ|/σ], the largest ratios first
    outlier_dims: list[list[float]] = column(lambda run: [[d.index, d.ratio] for d in outlier_dims(run.setup.tokens)])
    gamma_sae_input: float = column(lambda run: run.setup.gamma_sae_input)  # after preprocessing and centering
    # max |μ_i - b_dec_i|, in the units of what the SAE is given
    offset_max: float = column(lambda run: run.setup.offset_max)
    # at initialisation
    dead_pct_init_topk: float = column(lambda run: run.setup.fates.dead_pct_topk)
    dead_pct_init_relu: float = column(lambda run: run.setup.fates.dead_pct_relu)
    # mean cos(W_enc, μ) of the features dead by TopK; None if there are none
    alignment_dead_init: float | None = column(lambda run: run.mean_alignment_of_dead())
    theory_pct_topk: float = column(lambda run: run.theory_pct(theory.dead_by_topk, *run.sizes))
    theory_pct_relu: float = column(lambda run: run.theory_pct(theory.dead_by_relu))
    theory_pct_topk_small_gamma: float = column(lambda run: run.theory_pct(theory.dead_by_topk_small_gamma, *run.sizes))
    # after training
    # the SAE itself has them active on no evaluation token
    dead_pct_final: float | None = of_final(lambda final: final.evaluation.dead_pct)
    dead_pct_final_topk: float | None = of_final(lambda final: final.evaluation.fates.dead_pct_topk)
    dead_pct_final_relu: float | None = of_final(lambda final: final.evaluation.fates.dead_pct_relu)
    # not fired in the last `dead_window` training tokens
    dead_pct_final_window: float | None = of_final(lambda final: final.dead_pct_window)
    fvu: float | None = of_final(lambda final: final.evaluation.fvu)
    l0: float | None = of_final(lambda final: final.evaluation.l0)
    # ||b_dec - μ|| / ||μ||, both in the space of the preprocessed activations
    b_dec_distance: float | None = of_final(lambda final: final.bias.distance)
    b_dec_cos: float | None = of_final(lambda final: final.bias.cos)
    # b_dec · μ / ||μ||², and likewise of the mean reconstruction without b_dec
    mean_in_bias: float | None = of_final(lambda final: final.bias.mean_in_bias)
    mean_in_features: float | None = of_final(lambda final: final.bias.mean_in_features)
    # features that are active on more than 90 % of the evaluation tokens, and their share of L0
    always_on: int | None = of_final(lambda final: int(final.evaluation.always_on.sum()))
    always_on_l0_pct: float | None = of_final(lambda final: final.evaluation.always_on_l0_pct)
    # features that were alive at initialisation and are never positive now
    collateral_dead: int | None = of_final(lambda final: final.collateral_dead)
    # mean max cosine similarity of true features and decoder rows; None where the true features are not known
    mmcs: float | None = of_final(lambda final: final.mmcs)
    select_pct_changed: float | None = of_selection(lambda change: change.pct_changed)
    select_pct_tokens_changed: float | None = of_selection(lambda change: change.pct_tokens_changed)
    select_fvu_change: float | None = of_selection(lambda change: change.fvu_change)
    # where
    git_commit: str = provenance(lambda run: git_commit())
    device: str = provenance(lambda run: device_name(run.setup.device))
    versions: dict[str, str] = provenance(lambda run: versions())
    store_dtype: str = provenance(lambda run: run.setup.cfg.store_dtype)  # of training tokens, if not float32 before
    seconds: float = provenance(lambda run: round(run.seconds, 3))  # of all runs that were trained jointly, together
    side_by_side: int = provenance(lambda run: run.side_by_side)
    peak_memory_mb: float = provenance(lambda run: round(peak_memory_mb(run.setup.device), 1))
    schema_version: int = provenance(lambda run: SCHEMA_VERSION)


def record_of(outcome: Outcome) -> Record:
    return Record(**{one.name: one.metadata["formula"](outcome) for one in fields(Record)})


def about_the_sae(record: Record) -> dict[str, Any]:
    """Return the columns that go into the SAE's file: all but those of provenance."""
    return {one.name: getattr(record, one.name) for one in fields(Record) if "provenance" not in one.metadata}


def read_record(directory: Path) -> Record:
    """Return the record of a finished run; columns that it does not have are None, ones that are gone are left out."""
    row: dict[str, Any] = read_row(directory)
    columns: dict[str, Any] = {one.name: row.get(one.name) for one in fields(Record)}
    return Record(**columns)
