"""The typed schema of conf/: every setting with its bounds and with what it affects.

A misspelt or mistyped key is an error when the config is composed. What a setting affects is declared here and nowhere
else: the ids of runs and of stored activations, which records may stand in one table, what variants must share and
what a sweep's tasks are told all follow from it.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf

from sae_outliers.paths import config_folders
from sae_outliers.utils.options import typed_options

# An effect reaches everything after it: what changes the activations changes figures at initialisation and training.
Effect = Literal["activations", "init", "training", "nothing"]
EFFECTS: tuple[Effect, ...] = ("activations", "init", "training", "nothing")


@dataclass(frozen=True)
class Role:
    """What a setting does to results, and its bounds.

    Attributes:
        affects: the first stage whose outcome it changes. `nothing`: it says where a run happens and how it is watched.
        within: records are compared in it only if they agree in this: `model` (a network has its own data and loader),
            `sae`, `revival` (their options), `centering`, or `b_dec_speed` (whether b_dec_lr exceeds lr). Empty: all.
        axis: tables tell its values apart, each in a row or column of its own.
        neutral: the value under which results are as before the setting existed; it is left out of ids. None always is.
        shared: variants that train on one stream must agree in it; so they must in all that affects activations.
        sweep_only: a sweep reads it, and its tasks are not told.
        at_least, above, at_most: bounds of a number.
        in_paths: it is part of the names of files, so it must be the name of one.
    """

    affects: Effect
    within: str = ""
    axis: bool = False
    neutral: Any = None
    shared: bool = False
    sweep_only: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    in_paths: bool = False


def setting(default: Any = MISSING, *, affects: Effect, **role: Any) -> Any:
    """A field of the schema with its `Role`; a dict or list as the default is copied for each config."""
    metadata = {"role": Role(affects, **role)}
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    name: str = setting(affects="activations", axis=True, in_paths=True)  # the key in records and result paths
    domain: str = setting(affects="nothing")  # language, vision, protein, genomic or one of your own
    first_layer: int = setting(1, affects="nothing")  # where `layer=all` begins; layer i is the output of block i
    # a number, or a _target_ that counts blocks without loading weights, or lists the layers where they have gaps
    last_layer: Any = setting(affects="nothing")
    d_model: int | None = setting(None, affects="nothing")  # where it is known; every run reads it off the activations
    library: str | None = setting(None, affects="nothing")  # the package that loads it, beside our own dependencies
    licence: str | None = setting(None, affects="nothing")  # of the weights
    access: str | None = setting(None, affects="nothing")  # where weights have to be asked for: the page to do so
    parameters: float | None = setting(None, affects="nothing", above=0)  # from which memory and time are estimated
    gpu_batch_size: dict[int, int] = setting({}, affects="nothing")  # by GPU memory in GB: items per forward pass
    flops_per_token: float | None = setting(None, affects="nothing", above=0)  # null: 2 × parameters
    loader: dict[str, Any] = setting(affects="activations", within="model")  # _target_ of a function -> Backbone
    # where the features behind the activations are known: a _target_ of a function -> directions [n_true, d_model]
    true_features: dict[str, Any] | None = setting(None, affects="nothing")


@dataclass
class DataConfig:
    name: str = setting(affects="activations", within="model")
    source: dict[str, Any] = setting(affects="activations", within="model")  # _target_; called with a seed -> documents
    # items per forward pass; null: the model's for this GPU, 8 without one. It changes no more than rounding
    batch_size: int | None = setting(None, affects="nothing", shared=True, at_least=1)
    # at most so many tokens of an item, drawn at random; null: all
    tokens_per_item: int | None = setting(None, affects="activations", within="model", at_least=1)
    # scale the mean of the preprocessed tokens so that γ is this; null: as it is
    rescale_mean: float | None = setting(None, affects="init", axis=True, above=0)


@dataclass
class SaeConfig:
    """With the options that the yamls of conf/sae/ name, which go to the type's constructor."""

    name: str = setting(affects="init", axis=True)  # a registered SAE type
    _target_: str | None = setting(None, affects="init", within="sae")  # the dotted path of a class of your own
    n_features: int = setting(8192, affects="init", at_least=1)
    # active features per token; for relu, gated and jumprelu only the k of the dead-by-TopK measurement
    k: int = setting(64, affects="init", at_least=1)


@dataclass
class InitConfig:
    name: str = setting(affects="init")  # random, active_subspace or datapoint
    b_dec: str = setting("zeros", affects="init", within="centering")  # zeros, mean or geometric_median
    rank: int | None = setting(None, affects="init", at_least=1)  # active_subspace; null: the effective rank
    blend: float = setting(0.8, affects="init", at_least=0, at_most=1)  # datapoint: share of the token's direction


@dataclass
class RevivalConfig:
    """With the options that the yamls of conf/revival/ name, which go to the revival's constructor."""

    name: str = setting(affects="training", axis=True)  # a registered revival
    # the dotted path of a class of your own
    _target_: str | None = setting(None, affects="training", within="revival")


@dataclass
class CenteringConfig:
    name: str = setting(affects="init", axis=True)  # off, on, geometric_median, whiten or layernorm_center


@dataclass
class TrainConfig:
    steps: int = setting(affects="training", at_least=0)  # 0: measure at initialisation only
    batch_size: int = setting(1024, affects="training", shared=True, at_least=1)  # tokens per step
    # tokens stored for training, beside the n_eval evaluation tokens
    n_tokens: int = setting(affects="training", shared=True, at_least=0)
    lr: float = setting(3e-4, affects="training", above=0)
    # null: lr. At post-LN's scale Adam moves b_dec by lr a step, and μ is far off
    b_dec_lr: float | None = setting(None, affects="training", within="b_dec_speed", at_least=0)
    # b_dec stays where it started
    freeze_b_dec: bool = setting(False, affects="training", axis=True, neutral=False)
    # of what the SAE is given: none, sqrt_d (tokens of that norm) or unit (mean squared norm 1)
    input_scale: str = setting("none", affects="training", neutral="none")
    warmup_steps: int = setting(50, affects="training", at_least=0)
    # linear decay to 0 starts at this fraction of the steps
    decay_from: float = setting(0.8, affects="training", at_least=0, at_most=1)
    eval_every: int = setting(50, affects="training", at_least=1)  # steps between two points of the death curves
    checkpoint_every: int = setting(100, affects="nothing", at_least=1)
    # W: a feature that has not fired in the last W training tokens counts as not fired
    dead_window: int = setting(100_000, affects="training", at_least=1)


@dataclass
class TrackerConfig:
    name: str = setting(affects="nothing")  # wandb or none
    project: str = setting("sae_outliers", affects="nothing")
    entity: str | None = setting(None, affects="nothing")


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
    # which runs there are, each of one layer: a number, a list, `middle`, `all`, or one of these for each model's name
    layer: Any = setting(affects="nothing", shared=True, sweep_only=True)
    preprocessing: str = setting("postln", affects="init", shared=True)  # postln (the paper's) or raw
    # bf16_select (sae=topk): a product in bfloat16 names the candidates for the k largest
    precision: str = setting("float32", affects="training", within="sae")
    special_tokens: bool = setting(False, affects="init", shared=True)  # whether BOS, CLS and the like are SAE tokens
    n_eval: int = setting(20_000, affects="init", shared=True, at_least=1)  # tokens for severity and fates
    seed: int = setting(0, affects="activations")  # data and training order; the SAE's unless sae_seed
    sae_seed: int | None = setting(None, affects="init")  # SAE initialisation; null: seed
    variants: list[str] = setting(
        [], affects="nothing", shared=True
    )  # overrides, one string a run, or one for each combination of their values: trained jointly on one stream
    device: str = setting("auto", affects="nothing", shared=True)  # auto, cpu, cuda, cuda:1, ...
    # whether activations are stored; without, all is measured in the stream, at initialisation only
    store: bool = setting(True, affects="nothing", shared=True)
    # of training tokens: float16 of what varies, or float32; evaluation tokens always are
    store_dtype: str = setting("float16", affects="nothing", shared=True)
    task: str = setting("run", affects="nothing", shared=True)  # run, or extract: only store the activations
    # model=hf, model=timm: a hub id or a local folder; timm's name. It reaches results through the loader's arguments
    name: str | None = setting(None, affects="nothing", shared=True)
    path: str | None = setting(
        None, affects="nothing", shared=True
    )  # model=dump, model=af3: stored activations; likewise
    trust_remote_code: bool = setting(
        False, affects="nothing", shared=True
    )  # run the code of a model's hub repository, pinned
    check: bool = setting(
        False, affects="nothing", shared=True
    )  # only load the model, run one batch, print shapes, γ and memory
    results_dir: str = setting("results", affects="nothing", shared=True)
    group: str | None = setting(None, affects="nothing")  # W&B group; the sweep's name in a sweep
    # of a sweep: print the plan, what it takes and the sbatch scripts, and start nothing
    dry_run: bool = setting(False, affects="nothing", shared=True, sweep_only=True)
    wait: bool = setting(True, affects="nothing", shared=True, sweep_only=True)  # on SLURM: until its jobs have ended
    pack: int = setting(
        1, affects="nothing", shared=True, sweep_only=True, at_least=1
    )  # on SLURM: runs of a model in one task
    site: str | None = setting(
        None, affects="nothing", shared=True, sweep_only=True
    )  # launch/slurm/<site>.yaml; null: by cluster


# Of what stands below a setting that is a dict of arguments, or an option of an SAE type, a revival or a tracker.
OPEN_ROLES = {
    "model.loader.trust_remote_code": Role("nothing"),  # a permission
    "files": Role("activations", within="model"),  # fingerprints of the local files that a run reads
    "sae.": Role("init", within="sae"),  # a type may start from its options
    "revival.": Role("training", within="revival"),
    "tracker.": Role("nothing"),
}


@cache
def roles() -> dict[str, Role]:
    """The role of every setting of the schema, by its dotted key."""
    return dict(_roles(RunConfig, ""))


def _roles(schema: type, prefix: str) -> Iterator[tuple[str, Role]]:
    types = get_type_hints(schema)
    for one in fields(schema):
        if is_dataclass(types[one.name]):
            yield from _roles(types[one.name], f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, one.metadata["role"]


def role_of(key: str) -> Role:
    """Return the role of a setting, of an argument below one (`model.loader.context`), or of a type's option.

    A setting that the schema no longer has counts as the strongest, because nobody can tell what it did.
    """
    declared = OPEN_ROLES | roles()
    parents = (key.rsplit(".", depth)[0] for depth in range(key.count(".") + 1))
    groups = (f"{key.partition('.')[0]}.",)
    return next((declared[name] for name in (*parents, *groups) if name in declared), Role("activations"))


def with_options(schema: type, group: str) -> type:
    """The schema of a config group, with a field for every further key that a yaml of the group names."""
    declared = {one.name for one in fields(schema)}
    named: dict[str, None] = {}
    for folder in config_folders():
        for path in sorted((folder / group).glob("*.yaml")):
            content = yaml.safe_load(path.read_text()) or {}
            named |= dict.fromkeys(key for key in content if key not in declared and key != "defaults")
    options = [(key, Any, field(default=None)) for key in named]
    return make_dataclass(schema.__name__, options, bases=(schema,)) if options else schema


def schema() -> type:
    """RunConfig with the options of the SAE types, revivals and trackers that conf/ holds."""
    declared = {"sae": SaeConfig, "revival": RevivalConfig, "tracker": TrackerConfig}
    groups = {name: with_options(group, name) for name, group in declared.items()}
    typed = [(name, group, field(default_factory=group)) for name, group in groups.items()]
    return make_dataclass("RunConfig", typed, bases=(RunConfig,))


def options_of(cfg: SaeConfig | RevivalConfig, kind: type) -> dict[str, Any]:
    """Return what the constructor of the type `kind` is given: all that is set, but for the names.

    Raises:
        ValueError: an option that it does not take, or a value that is not of its type.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    given = {key: value for key, value in options.items() if key not in ("name", "_target_") and value is not None}
    group = "sae" if issubclass(OmegaConf.get_type(cfg), SaeConfig) else "revival"  # type: ignore[arg-type]
    return typed_options(kind, given, group, cfg.name)


def sae_options(cfg: RunConfig, kind: type) -> dict[str, Any]:
    """Return what the SAE's constructor is given besides the sizes that the data has, its scale and its seed."""
    return options_of(cfg.sae, kind) | ({} if cfg.precision == "float32" else {"precision": cfg.precision})


def sae_seed_of(seed: int, sae_seed: int | None) -> int:
    """Return the seed of the SAE's initialisation: `sae_seed`, or `seed` where it is null."""
    return seed if sae_seed is None else sae_seed


def expand(cfg: RunConfig, compose: Callable[[list[str]], RunConfig]) -> list[RunConfig]:
    """The config of each of `cfg.variants`, which `compose` makes of its overrides; `cfg` where there are none."""
    return [compose(overrides) for variant in cfg.variants for overrides in grid(variant)] or [cfg]


def grid(variant: str) -> Iterator[list[str]]:
    """Yield the overrides of a variant, in every combination where some have several values: `sae_seed=0,1 sae.k=32`.

    Raises:
        HydraException: it is not of Hydra's grammar.
    """
    overrides = OverridesParser.create().parse_overrides(shlex.split(variant))
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in overrides
    ]
    return map(list, product(*choices))


# last parts of paths that say nothing of what is there
GENERIC = re.compile(
    r"(|acts?|activations?|best|checkpoints?|ckpt|data|embeddings?|epoch|final|hf|hidden_?states?|last|latest|layers?|"
    r"main|models?|outputs?|shards?|snapshots?|states?|steps?|weights|[0-9a-f]{40})[-_.]?\d*",
    re.IGNORECASE,
)


def key_of(name: str | None) -> str:
    """Return the key of a model that is named by a hub id or a path, as one part of a path.

    Of a path it is the last part, without a file's ending, after the parts above it as long as these say nothing:
    `runs/a/model` is `a--model`.

    Raises:
        ValueError: there is none.
    """
    if not name:
        raise ValueError("this model needs to be told which: add name=, or path= for model=dump")
    path = Path(name).expanduser()
    if not path.exists() and "{layer}" not in name:
        return name.strip("/.~").replace("/", "--")
    path = path.resolve()
    parts = [path.name if path.is_dir() else path.stem.replace("{layer}", "").strip("-_.")]
    for parent in path.parents:
        if not GENERIC.fullmatch(parts[0]):
            break
        parts.insert(0, parent.name)
    return "--".join(part for part in parts if part)


def register() -> None:
    """Make the schema known to Hydra, under the names that conf/config.yaml lists."""
    OmegaConf.register_new_resolver("key_of", key_of, replace=True)
    ConfigStore.instance().store(name="schema", node=schema())


register()
