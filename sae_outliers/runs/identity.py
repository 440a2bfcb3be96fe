"""What a run and a store of activations are known by: digests of the settings that determine them.

Settings go in by name, not by the place of the code behind them, and only where they change something: a moved
module, a renamed class or a new option with its neutral default leaves every id as it is.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import RunConfig
from sae_outliers.results.layout import run_dir
from sae_outliers.results.settings import activation_settings, settings_of
from sae_outliers.runs.former_ids import former_run_digests, former_store_digest
from sae_outliers.utils.files import digest, file_fingerprints

FORMAT = 3  # raised when the same settings come to mean other results


def run_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return all that determines the results under `cfg`, but for the layer; `files` are the local files it reads."""
    config = _resolved(cfg)
    return settings_of(config) | _local_files(config)


def store_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return all that determines the stored rows and their order; not their number, since a store only grows."""
    config = _resolved(cfg)
    return activation_settings(config) | _local_files(config)


def run_directories(cfg: RunConfig, layers: Iterable[int]) -> list[Path]:
    """Return the folder of each layer's run, named by the digest of its settings and its layer.

    A run that an earlier version began or finished stays in the folder that it has.
    """
    layers = list(layers)
    results_dir, name, settings = Path(cfg.results_dir), cfg.model.name, run_settings(cfg)
    now = [run_dir(results_dir, name, one, digest(settings | {"layer": one, "format": FORMAT})) for one in layers]
    if not any(folder.parent.is_dir() and not folder.is_dir() for folder in now):
        return now
    former = former_run_digests(_resolved(cfg), layers)
    before = [run_dir(results_dir, name, one, was) for one, was in zip(layers, former, strict=True)]
    return [_first_there(*pair) for pair in zip(now, before, strict=True)]


def store_directory(cfg: RunConfig) -> Path:
    """Return the folder of the activations that `cfg` reads; one that an earlier version filled stays where it is."""
    stores, name = Path(cfg.results_dir) / "activations", cfg.model.name
    now = stores / f"{name}-{digest(store_settings(cfg) | {'format': FORMAT})}"
    if now.is_dir() or not stores.is_dir():
        return now
    return _first_there(now, stores / f"{name}-{former_store_digest(_resolved(cfg))}")


def _first_there(now: Path, before: Path) -> Path:
    return now if now.is_dir() or not before.is_dir() else before


def _resolved(cfg: RunConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _local_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprints of the files that `path=` and `name=` name, where these are local."""
    places = [Path(place).expanduser() for place in (config["path"], config["name"]) if place]
    found = [file_fingerprints(place) for place in places if place.exists()]
    return {"files": found} if found else {}
