"""Instantiate config nodes with a `_target_`: network loaders and data sources.

Run and store ids are digests over names, so a component keeps its first name in them when its code moves.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

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


OURS = ("sae_outliers.models.", "sae_outliers.data.")  # modules of loaders and data sources


def is_ours(target: str) -> bool:
    """Return whether a `_target_` is a function or class that this package defines for configs to name.

    A name that a module of ours has merely imported, `sae_outliers.data.arrays.np.load`, is not.
    """
    module, _, attribute = _moved(target).rpartition(".")
    if not module.startswith(OURS):
        return False
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):  # of a module that is none: it goes on into an object
        return False
    return str(getattr(found, "__module__", "")).startswith(OURS)


def instantiate(node: Any) -> Any:
    """Return the object that a config node describes. Raise whatever its constructor raises."""
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
    return {key: _moved(value) if key == "_target_" else _where_they_are(value) for key, value in node.items()}


def _moved(target: str) -> str:
    module, _, attribute = target.rpartition(".")
    return f"{_MOVED.get(module, module)}.{attribute}"
