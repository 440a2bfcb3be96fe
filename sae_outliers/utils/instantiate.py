"""Instantiate config nodes with a `_target_`: network loaders and data sources.

Run and store ids are digests over names, so a component keeps its first name in them when its code moves.

A `_target_` names any function, and naming one runs it. Whoever types a command may name what they like. A command that
is run again from a manifest may name what a yaml of the config folders names, and nothing else.
"""

import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra.utils
import yaml
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from sae_outliers.paths import config_folders

# Current module -> the module name that ids contain and that configs may still use. Add a line when you move a loader
# or a data source; a module that never moved needs none.
STABLE_NAMES = {
    "sae_outliers.models.transformers.auto": "sae_outliers.models.huggingface",
    "sae_outliers.models.transformers.progen": "sae_outliers.models.progen",
    "sae_outliers.models.transformers.remote_code": "sae_outliers.models.remote_code",
    "sae_outliers.models.transformers.byte_tokenizer": "sae_outliers.models.byte_tokenizer",
    "sae_outliers.models.transformers.safetensors_files": "sae_outliers.models.safetensors_files",
    "sae_outliers.models.vision.timm": "sae_outliers.models.timm_vision",
    "sae_outliers.models.vision.packaged_weights": "sae_outliers.models.vision_weights",
    "sae_outliers.models.other.diffusion": "sae_outliers.models.diffusion",
    "sae_outliers.models.other.esm3": "sae_outliers.models.esm3",
    "sae_outliers.models.other.spliceai": "sae_outliers.models.spliceai",
    "sae_outliers.models.other.precomputed": "sae_outliers.models.stored",
    "sae_outliers.models.other.synthetic": "sae_outliers.models.synthetic",
    "sae_outliers.data.arrays": "sae_outliers.data.stored",
}
_MOVED = {name: path for path, name in STABLE_NAMES.items()}


def stable_name(target: str) -> str:
    """Return the name of a `_target_` in ids, which stays the same when its module moves."""
    module, _, attribute = target.rpartition(".")
    return f"{STABLE_NAMES.get(module, module)}.{attribute}"


ONLY_NAMED = "SAE_OUTLIERS_ONLY_NAMED"  # 1 in the environment of a manifest's command and of the jobs that it starts


def check_target(target: str) -> None:
    """Raise ValueError if this process runs a manifest's command, and no yaml of the config folders has this target."""
    if os.environ.get(ONLY_NAMED) == "1" and not is_named(target):
        raise ValueError(
            f"_target_={target} stands in none of your configs, and this command is a manifest's: type the command "
            "yourself if you mean it"
        )


def is_named(target: str) -> bool:
    """Return whether a yaml of the config folders, the project's or the user's own, has this `_target_`."""
    return any(_moved(target) in targets_below(folder) for folder in config_folders())


@cache
def targets_below(folder: Path) -> frozenset[str]:
    """Return every `_target_` in the yamls below a folder."""
    return frozenset(target for path in folder.rglob("*.yaml") for target in _targets(_content(path)))


def _content(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), yaml.CSafeLoader)
    except yaml.YAMLError:  # Hydra says what is wrong with it once it is chosen
        return None


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _targets(item)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from [str(value)] if key == "_target_" else _targets(value)


def instantiate(node: Any) -> Any:
    """Return the object that a config node describes.

    Raise ValueError for a `_target_` that must not be named (`check_target`), or whatever its constructor raises.
    """
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        return hydra.utils.instantiate(_where_they_are(plain))
    except InstantiationException as error:
        raise error.__cause__ or error from None  # Hydra's wrapper hides the message that tells users what to do


def _where_they_are(node: Any) -> Any:
    """Return the node with each `_target_` in a former module replaced by its current one."""
    if isinstance(node, list):
        return [_where_they_are(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _permitted(value) if key == "_target_" else _where_they_are(value) for key, value in node.items()}


def _permitted(target: str) -> str:
    check_target(target)
    return _moved(target)


def _moved(target: str) -> str:
    module, _, attribute = target.rpartition(".")
    return f"{_MOVED.get(module, module)}.{attribute}"
