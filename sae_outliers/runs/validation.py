"""Refuse what no run can use before anything is loaded, extracted or submitted."""

import inspect
from collections.abc import Collection, Sequence

from hydra.utils import get_class
from omegaconf import OmegaConf

from sae_outliers.activations.extract import store_dir, tokens_wanted
from sae_outliers.config import RevivalConfig, RunConfig, SaeConfig, options_of, sae_options
from sae_outliers.sae.initialization import B_DEC, DIRECTIONS, READ_TOKENS
from sae_outliers.sae.kernels import PRECISIONS
from sae_outliers.stats.centering import CENTERINGS
from sae_outliers.stats.preprocessing import PREPROCESSINGS

LEAST = {
    "n_eval": 1,
    "pack": 1,
    "data.batch_size": 1,
    "sae.n_features": 1,
    "train.steps": 0,
    "train.n_tokens": 0,
    "train.batch_size": 1,
    "train.eval_every": 1,
    "train.checkpoint_every": 1,
    "train.dead_window": 1,
}

NAMES: dict[str, Collection[str]] = {
    "task": ("run", "extract"),
    "preprocessing": PREPROCESSINGS,
    "precision": PRECISIONS,
    "centering": CENTERINGS,
    "init": DIRECTIONS,
    "init.b_dec": B_DEC,
}

ONE_STREAM = ("n_eval", "seed", "special_tokens", "preprocessing", "device", "train.batch_size")


def validate(cfg: RunConfig, variants: Sequence[RunConfig]) -> None:
    """Refuse values that no run can use, and variants that cannot train side by side.

    Raises:
        ValueError: one; it names the option, its value and what to do.
    """
    for one in (cfg, *variants):
        _check_numbers(one)
        _check_names(one)
        _check_together(one)
        _check_sae(one)
    if len(variants) > 1:
        _check_one_stream(variants)


def _check_numbers(cfg: RunConfig) -> None:
    for option, least in LEAST.items():
        value = OmegaConf.select(cfg, option)  # type: ignore[arg-type]
        if value is not None and value < least:
            raise ValueError(f"{option}={value} must be at least {least}")
    if cfg.data.rescale_mean is not None and cfg.data.rescale_mean <= 0:
        raise ValueError(f"data.rescale_mean={cfg.data.rescale_mean} is a γ and must be above 0")
    if not 0 < cfg.sae.k <= cfg.sae.n_features:
        raise ValueError(f"sae.k={cfg.sae.k} must lie between 1 and sae.n_features={cfg.sae.n_features}")


def _check_names(cfg: RunConfig) -> None:
    for option, names in NAMES.items():
        value = OmegaConf.select(cfg, option)  # type: ignore[arg-type]
        name = value if isinstance(value, str) else value.name
        if name not in names:
            raise ValueError(f"{option}={name} does not exist: use one of {', '.join(names)}")


def _check_together(cfg: RunConfig) -> None:
    if not cfg.store and cfg.train.steps:
        raise ValueError("store=false measures in the stream, where nothing is trained: add train=none")
    if not cfg.store and (cfg.init.name in READ_TOKENS or cfg.init.b_dec in READ_TOKENS):
        raise ValueError(
            f"store=false does not keep the tokens, which init={cfg.init.name} with init.b_dec={cfg.init.b_dec} reads "
            "again: use init=random init.b_dec=zeros, or store=true"
        )
    if cfg.precision != "float32" and cfg.sae.name != "topk":
        raise ValueError(f"precision={cfg.precision} is for sae=topk, not for sae={cfg.sae.name}: use float32")


def _check_sae(cfg: RunConfig) -> None:
    """Make the SAE, of width 1, and the revival: they know best what they cannot be."""
    _check_options("sae", cfg.sae)
    _check_options("revival", cfg.revival)
    sae = get_class(cfg.sae._target_)(1, **sae_options(cfg))
    get_class(cfg.revival._target_)(**options_of(cfg.revival)).check(sae)


def _check_options(group: str, cfg: SaeConfig | RevivalConfig) -> None:
    taken = inspect.signature(get_class(cfg._target_)).parameters
    for option in options_of(cfg):
        if option not in taken:
            raise ValueError(f"{group}={cfg.name} has no option {option}: leave {group}.{option} out")


def _check_one_stream(variants: Sequence[RunConfig]) -> None:
    """Runs that train side by side read the same tokens."""
    for option in ONE_STREAM:
        values = {OmegaConf.select(cfg, option) for cfg in variants}  # type: ignore[arg-type]
        if len(values) > 1:
            shown = " and ".join(sorted(map(str, values)))
            raise ValueError(f"variants must share {option}, but have {shown}: run them apart")
    if len({(store_dir(cfg), tokens_wanted(cfg)) for cfg in variants}) > 1:
        raise ValueError("variants must share model, data and train.n_tokens: run them apart")
