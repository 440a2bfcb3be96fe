"""Refuse what no run can use before anything is loaded, extracted or submitted."""

from collections.abc import Collection, Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.activations.extract import store_dir, tokens_wanted
from sae_outliers.config import RunConfig, options_of, sae_options
from sae_outliers.sae.base import sae_type
from sae_outliers.sae.initialization import B_DEC_INITS, INITS, reads_tokens
from sae_outliers.sae.kernels import PRECISIONS
from sae_outliers.stats.transforms import CENTERINGS, PREPROCESSINGS
from sae_outliers.tracking.base import TRACKERS
from sae_outliers.training.revival import revival_type
from sae_outliers.utils.registry import Registry

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

NAMES: dict[str, Collection[str] | Registry[Any]] = {
    "task": ("run", "extract"),
    "preprocessing": PREPROCESSINGS,
    "precision": PRECISIONS,
    "centering": CENTERINGS,
    "init": INITS,
    "init.b_dec": B_DEC_INITS,
    "tracker": TRACKERS,
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
    if not cfg.store and reads_tokens(cfg.init):
        raise ValueError(
            f"store=false does not keep the tokens, which init={cfg.init.name} with init.b_dec={cfg.init.b_dec} reads "
            "again: use init=random init.b_dec=zeros, or store=true"
        )
    if cfg.precision != "float32" and cfg.sae.name != "topk":
        raise ValueError(f"precision={cfg.precision} is for sae=topk, not for sae={cfg.sae.name}: use float32")


def _check_sae(cfg: RunConfig) -> None:
    """Make the SAE, of width 1, and the revival: they know best what they cannot be."""
    kind, revival = sae_type(cfg.sae), revival_type(cfg.revival)
    sae = kind(1, **sae_options(cfg, kind))
    revival(**options_of(cfg.revival, revival)).check(sae)


def _check_one_stream(variants: Sequence[RunConfig]) -> None:
    """Runs that train side by side read the same tokens."""
    for option in ONE_STREAM:
        values = {OmegaConf.select(cfg, option) for cfg in variants}  # type: ignore[arg-type]
        if len(values) > 1:
            shown = " and ".join(sorted(map(str, values)))
            raise ValueError(f"variants must share {option}, but have {shown}: run them apart")
    if len({(store_dir(cfg), tokens_wanted(cfg)) for cfg in variants}) > 1:
        raise ValueError("variants must share model, data and train.n_tokens: run them apart")
