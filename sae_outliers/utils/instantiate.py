"""Build what a config names by `_target_`: network loaders and data sources.

Ids are digests over names, so a component keeps the name under which it was first known, wherever its code moves.
"""

from collections.abc import Mapping
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

# Where the code is now -> the name that ids know it by, which as a _target_ still works. Whoever moves a loader or a
# data source adds a line; one that has never moved is known by its path.
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
    """The name under which ids know a `_target_`: the same before and after its module moved."""
    module, _, attribute = target.rpartition(".")
    return f"{STABLE_NAMES.get(module, module)}.{attribute}"


def instantiate(node: Any) -> Any:
    """Return the object that a config node describes. Raises whatever its constructor raised."""
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        return hydra.utils.instantiate(_where_they_are(plain))
    except InstantiationException as error:
        raise error.__cause__ or error from None


def _where_they_are(node: Any) -> Any:
    """The node with every `_target_` that names a module's former place pointed to where it is now."""
    if isinstance(node, list):
        return [_where_they_are(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _moved(value) if key == "_target_" else _where_they_are(value) for key, value in node.items()}


def _moved(target: str) -> str:
    module, _, attribute = target.rpartition(".")
    return f"{_MOVED.get(module, module)}.{attribute}"
