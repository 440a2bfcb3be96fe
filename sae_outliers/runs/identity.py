"""What a run and a store of activations are known by: digests of the settings that determine them.

Settings go in by name, not by the place of the code behind them, and only where they change something: a moved
module, a renamed class or a new option with its neutral default leaves every id as it is.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import RunConfig
from sae_outliers.results.layout import run_dir
from sae_outliers.results.settings import activation_settings, settings_of
from sae_outliers.runs.former_ids import former_run_digests, former_store_digest
from sae_outliers.runs.local_files import local_files, newest
from sae_outliers.utils.files import digest

FORMAT = 3  # raised when the same settings come to mean other results


def run_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return all that determines the results under `cfg`, but for the layer; `files` are what it reads here."""
    config = _resolved(cfg)
    return settings_of(config) | local_files(config)


def store_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return all that determines the stored rows and their order; not their number, since a store only grows."""
    config = _resolved(cfg)
    return activation_settings(config) | local_files(config)


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
    return [_first_there(*pair, settings) for pair in zip(now, before, strict=True)]


def store_directory(cfg: RunConfig) -> Path:
    """Return the folder of the activations that `cfg` reads; one that an earlier version filled stays where it is."""
    stores, name = Path(cfg.results_dir) / "activations", cfg.model.name
    settings = store_settings(cfg)
    now = stores / f"{name}-{digest(settings | {'format': FORMAT})}"
    if now.is_dir() or not stores.is_dir():
        return now
    return _first_there(now, stores / f"{name}-{former_store_digest(_resolved(cfg))}", settings)


def _first_there(now: Path, before: Path, settings: dict[str, Any]) -> Path:
    """The folder of an earlier version where there is one, unless a file that the run reads has changed since."""
    if now.is_dir() or not before.is_dir():
        return now
    began = min((file.stat().st_mtime_ns for file in before.iterdir()), default=before.stat().st_mtime_ns)
    return before if newest(settings.get("files", ())) <= began else now


def _resolved(cfg: RunConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
