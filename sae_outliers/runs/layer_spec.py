"""Parse the `layer` option."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import ModelConfig
from sae_outliers.utils.instantiate import instantiate


def last_layer(model: ModelConfig) -> int:
    """Return the index of the model's last layer: the config's, or what the `_target_` there computes."""
    found = _last_or_all(model)
    return found if isinstance(found, int) else max(found)


def layers_of(model: ModelConfig, layer: Any) -> list[int]:
    """Return the layers of the model that `layer` selects, or of a mapping by models' names its own entry.

    Raise ValueError as `resolve_layers` does, or where the mapping does not name the model.
    """
    if isinstance(layer, Mapping):
        if model.name not in layer:
            named = ",".join(f"{name}:{selected}" for name, selected in layer.items())
            raise ValueError(f"layer={{{named}}} names no layer of {model.name}: add {model.name}:<layer>")
        layer = layer[model.name]
    found = _last_or_all(model)
    return resolve_layers(layer, range(model.first_layer, found + 1) if isinstance(found, int) else found)


def _last_or_all(model: ModelConfig) -> int | list[int]:
    """Return the last layer, or the number of each where they have gaps."""
    found: Any = model.last_layer
    found = instantiate(found) if OmegaConf.is_config(found) else found
    return found if isinstance(found, list) else int(found)


def resolve_layers(layer: Any, layers: Sequence[int]) -> list[int]:
    """Return those of a model's layers that `layer` selects: `all`, `middle`, an index or a list of them.

    Raise ValueError for anything else, or for a layer that the model does not have.
    """
    if layer == "all":
        return list(layers)
    if layer == "middle":
        return [layers[len(layers) // 2]]
    indices = list(layer) if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
    if not indices:
        raise ValueError(f"layer={layer} selects no layer: use all, middle or numbers {_shown(layers, 'from ')}")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool):  # True would pass as layer 1
            raise ValueError(f"layer={index} is not a layer: use all, middle or numbers {_shown(layers, 'from ')}")
        if index not in layers:
            raise ValueError(f"layer={index} does not exist: this model has layers {_shown(layers)}")
    return indices


def _shown(layers: Sequence[int], before: str = "") -> str:
    """Return `1 to 12`, or each number where there are gaps."""
    if len(layers) == layers[-1] - layers[0] + 1:
        return f"{before}{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
