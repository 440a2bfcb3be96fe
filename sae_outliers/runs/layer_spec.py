"""Parse the `layer` option."""

from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import ModelConfig
from sae_outliers.utils.instantiate import instantiate


def last_layer(model: ModelConfig) -> int:
    """Return the index of the model's last layer: the config's, or what the `_target_` there computes."""
    found: Any = model.last_layer
    return int(instantiate(found)) if OmegaConf.is_config(found) else int(found)


def layers_of(model: ModelConfig, layer: Any) -> list[int]:
    """Return the layers of the model that `layer` selects. Raise ValueError as `resolve_layers` does."""
    return resolve_layers(layer, model.first_layer, last_layer(model))


def resolve_layers(layer: Any, first: int, last: int) -> list[int]:
    """Return the layers between `first` and `last` that `layer` selects: `all`, `middle`, an index or a list of them.

    Raise ValueError for anything else, or for a layer that the model does not have.
    """
    if layer == "all":
        return list(range(first, last + 1))
    if layer == "middle":
        return [(first + last + 1) // 2]
    indices = list(layer) if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
    if not indices:
        raise ValueError(f"layer={layer} selects no layer: use all, middle or numbers from {first} to {last}")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):  # True would pass as layer 1
            raise ValueError(f"layer={index} is not a layer: use all, middle or numbers from {first} to {last}")
        if not first <= index <= last:
            raise ValueError(f"layer={index} does not exist: this model has layers {first} to {last}")
    return indices
