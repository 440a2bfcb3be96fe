"""Refuse what no run can use before anything is loaded, extracted or submitted."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.activations.coding import DTYPES
from sae_outliers.config import RunConfig, options_of, roles, sae_options
from sae_outliers.runs.identity import store_settings
from sae_outliers.sae.base import sae_type
from sae_outliers.sae.initialization import B_DEC_INITS, INITS, reads_tokens
from sae_outliers.sae.kernels import PRECISIONS
from sae_outliers.stats.transforms import CENTERINGS, INPUT_SCALES, PREPROCESSINGS
from sae_outliers.tracking.base import TRACKERS
from sae_outliers.training.revival import revival_type
from sae_outliers.utils.options import check_file_name, check_number
from sae_outliers.utils.registry import Registry

NAMES: dict[str, Collection[str] | Registry[Any]] = {
    "task": ("run", "extract"),
    "preprocessing": PREPROCESSINGS,
    "precision": PRECISIONS,
    "store_dtype": DTYPES,
    "centering": CENTERINGS,
    "init": INITS,
    "init.b_dec": B_DEC_INITS,
    "train.input_scale": INPUT_SCALES,
    "tracker": TRACKERS,
}


def validate(cfg: RunConfig, variants: Sequence[RunConfig]) -> None:
    """Refuse values that no run can use, and variants that cannot train side by side.

    Raises:
        ValueError: one; it names the option, its value and what to do.
    """
    for one in (cfg, *variants):
        options = {option: OmegaConf.select(one, option) for option in (*roles(), *NAMES)}  # type: ignore[arg-type]
        _check_values(options)
        _check_names(options)
        _check_together(one)
        _check_sae(one)
    _check_variants(cfg, variants)


def _check_values(options: Mapping[str, Any]) -> None:
    for option, role in roles().items():
        value = options[option]
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_number(option, value, at_least=role.at_least, above=role.above, at_most=role.at_most)
        elif role.in_paths:
            check_file_name(option, value)
    k, n_features = options["sae.k"], options["sae.n_features"]
    if k > n_features:
        raise ValueError(f"sae.k={k} must lie between 1 and sae.n_features={n_features}")


def _check_names(options: Mapping[str, Any]) -> None:
    for option, names in NAMES.items():
        value = options[option]
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
    if cfg.train.steps and cfg.train.n_tokens < cfg.train.batch_size:
        raise ValueError(
            f"train.n_tokens={cfg.train.n_tokens} does not fill one batch of train.batch_size={cfg.train.batch_size}: "
            "raise the one or lower the other"
        )
    if cfg.precision != "float32" and cfg.sae.name != "topk":
        raise ValueError(f"precision={cfg.precision} is for sae=topk, not for sae={cfg.sae.name}: use float32")


def _check_sae(cfg: RunConfig) -> None:
    """Make the SAE, of width 1, and the revival: they know best what they cannot be."""
    kind, revival = sae_type(cfg.sae), revival_type(cfg.revival)
    sae = kind(1, **sae_options(cfg, kind))
    one = revival(**options_of(cfg.revival, revival))
    one.check(sae)
    if cfg.train.steps:
        one.check_length(cfg.train.steps, cfg.train.steps * cfg.train.batch_size, cfg.train.dead_window)


def _check_variants(cfg: RunConfig, variants: Sequence[RunConfig]) -> None:
    """Refuse runs that cannot be trained jointly, because they read different tokens or happen somewhere else."""
    streams = [store_settings(one) for one in variants] if len(variants) > 1 else []
    for option in dict.fromkeys(option for stream in streams for option in stream):
        _check_same(option, [stream.get(option) for stream in streams])
    for option, role in roles().items():
        if role.shared:  # of what affects no result, the command's own value is the one that counts
            together = (cfg, *variants) if role.affects == "nothing" else variants
            _check_same(option, [OmegaConf.select(one, option) for one in together])  # type: ignore[arg-type]


def _check_same(option: str, values: Sequence[Any]) -> None:
    shown = sorted({str(value) for value in values})
    if len(shown) > 1:
        raise ValueError(f"variants must share {option}, but have {' and '.join(shown)}: run them apart")
