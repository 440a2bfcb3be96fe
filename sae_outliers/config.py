"""The typed schema of conf/: a misspelt or mistyped key is an error when the config is composed."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class ModelConfig:
    name: str = MISSING  # the key in records and result paths
    domain: str = MISSING  # language, vision, protein or genomic
    first_layer: int = 1  # layers that `layer=all` runs; layer i is the output of block i, counted from 1
    last_layer: Any = MISSING  # a number, or a _target_ with arguments that counts the blocks without loading weights
    d_model: int | None = None  # where it is known; every run reads it off the activations
    library: str | None = None  # the Python package that loads it, beside this project's own dependencies
    licence: str | None = None  # of the weights
    access: str | None = None  # where weights have to be asked for: the page to do so
    parameters: float | None = None  # number of weights, from which memory and time are estimated
    gpu_batch_size: dict[int, int] = field(default_factory=dict)  # by GPU memory in GB: items per forward pass
    flops_per_token: float | None = None  # of the forward passes behind a stored token; null: 2 × parameters
    loader: dict[str, Any] = MISSING  # _target_ and arguments; returns a models.backbone.Backbone


@dataclass
class DataConfig:
    name: str = MISSING
    source: dict[str, Any] = MISSING  # _target_ and arguments; called with a seed, it yields documents
    batch_size: int | None = None  # items per forward pass; null: the model's for this GPU; 8 without one
    tokens_per_item: int | None = None  # at most so many tokens of an item, drawn at random; null: all
    rescale_mean: float | None = None  # scale the mean of the preprocessed tokens so that γ is this; null: as it is


@dataclass
class SaeConfig:
    name: str = MISSING
    _target_: str = MISSING  # a sae.autoencoder.SparseAutoencoder
    n_features: int = 8192
    k: int = 64  # active features per token; for relu, gated and jumprelu only the k of the dead-by-TopK measurement
    # options of some types; null where the type has none
    sparsity: float | None = None  # relu, gated, jumprelu: weight of the sparsity penalty
    decoder_norm_weighted: bool | None = None  # relu: weigh the penalty by decoder norms, and leave these free
    bandwidth: float | None = None  # jumprelu: width of the pseudo-derivatives
    prefixes: list[float] | None = None  # matryoshka: ascending fractions of n_features


@dataclass
class InitConfig:
    name: str = MISSING  # random, active_subspace or datapoint
    b_dec: str = "zeros"  # zeros, mean or geometric_median
    rank: int | None = None  # active_subspace: principal axes; null: the effective rank
    blend: float = 0.8  # datapoint: share of the token's direction


@dataclass
class RevivalConfig:
    name: str = MISSING
    _target_: str = MISSING  # a revival.Revival
    # options of some revivals; null where it has none
    alpha: float | None = None  # auxk: weight of its loss
    k_aux: int | None = None  # auxk: dead features per token; null: the power of two nearest to d_model / 2
    coefficient: float | None = None  # preact_loss: weight of its loss
    every: int | None = None  # resample: steps
    until: int | None = None  # resample: last step
    encoder_norm: float | None = None  # resample: beside the mean norm of the others


@dataclass
class CenteringConfig:
    name: str = MISSING  # off, on, geometric_median, whiten or layernorm_center


@dataclass
class TrainConfig:
    steps: int = MISSING  # 0: measure at initialisation only
    batch_size: int = 1024  # tokens per step
    n_tokens: int = MISSING  # tokens stored for training, beside the n_eval evaluation tokens
    lr: float = 3e-4
    b_dec_lr: float | None = None  # null: lr. At post-LN's scale Adam moves b_dec by lr a step, and μ is far off
    warmup_steps: int = 50
    decay_from: float = 0.8  # linear decay to 0 starts at this fraction of the steps
    eval_every: int = 50  # steps between two points of the death curves
    checkpoint_every: int = 100
    dead_window: int = 100_000  # W: a feature that has not fired in the last W training tokens counts as not fired


@dataclass
class TrackerConfig:
    name: str = MISSING  # wandb or none
    project: str = "sae_outliers"
    entity: str | None = None


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    init: InitConfig = field(default_factory=InitConfig)
    revival: RevivalConfig = field(default_factory=RevivalConfig)
    centering: CenteringConfig = field(default_factory=CenteringConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    layer: Any = MISSING  # a number, a list of numbers, `middle` or `all`
    preprocessing: str = "postln"  # postln (the paper's) or raw
    precision: str = "float32"  # bf16_select (sae=topk): a product in bfloat16 names the candidates for the k largest
    special_tokens: bool = False  # whether BOS, CLS and the like are among the SAE's tokens
    n_eval: int = 20_000  # tokens on which severity and fates are measured
    seed: int = 0  # data order and training order, and the SAE's unless sae_seed is given
    sae_seed: int | None = None  # SAE initialisation; null: seed
    variants: list[str] = field(default_factory=list)  # overrides, one string a run: trained side by side on one stream
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    store: bool = True  # whether activations are stored; without, all is measured in the stream, at initialisation only
    task: str = "run"  # run, or extract: only store the activations
    name: str | None = None  # model=hf, model=timm: a hub id or a local folder; timm's name
    path: str | None = None  # model=dump, model=af3: a file or folder of stored activations
    trust_remote_code: bool = False  # run the Python code that a model's hub repository holds, at its pinned revision
    check: bool = False  # only load the model, run one batch, and print shapes, γ and memory
    results_dir: str = "results"
    group: str | None = None  # W&B group; the sweep's name in a sweep
    dry_run: bool = False  # of a sweep: print the plan, what it takes and the sbatch scripts, and start nothing
    wait: bool = True  # of a sweep on SLURM: until its jobs have ended; false: submit and return
    pack: int = 1  # of a sweep on SLURM: runs of one model that a task does one after the other
    site: str | None = None  # of a sweep on SLURM: launch/slurm/<site>.yaml; null: named like the cluster, or default


def options_of(cfg: SaeConfig | RevivalConfig) -> dict[str, Any]:
    """What a type's own constructor is given: all that is set, but for the names."""
    options: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return {key: value for key, value in options.items() if key not in ("name", "_target_") and value is not None}


def sae_options(cfg: RunConfig) -> dict[str, Any]:
    """What the SAE's constructor is given besides the sizes that the data has, its scale and its seed."""
    return options_of(cfg.sae) | ({} if cfg.precision == "float32" else {"precision": cfg.precision})


def expand(cfg: RunConfig, compose: Callable[[list[str]], RunConfig]) -> list[RunConfig]:
    """The config of each of `cfg.variants`, which `compose` makes of its overrides; `cfg` where there are none."""
    return [compose(shlex.split(variant)) for variant in cfg.variants] or [cfg]


def key_of(name: str | None) -> str:
    """A hub id as one part of a path, or the last part of a path. Raises ValueError where there is none."""
    if not name:
        raise ValueError("this model needs to be told which: add name=, or path= for model=dump")
    path = Path(name).expanduser()
    return path.resolve().stem if path.exists() else name.strip("/.~").replace("/", "--")


def register() -> None:
    """Make the schema known to Hydra, under the names that conf/config.yaml lists."""
    OmegaConf.register_new_resolver("key_of", key_of, replace=True)
    ConfigStore.instance().store(name="schema", node=RunConfig)
