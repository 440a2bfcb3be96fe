"""What `layer=` may say."""

from collections.abc import Iterable
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import ModelConfig
from sae_outliers.utils.instantiate import instantiate


def last_layer(model: ModelConfig) -> int:
    """The number of the model's last layer: as the config says, or as the `_target_` that it names finds it."""
    found: Any = model.last_layer
    return int(instantiate(found)) if OmegaConf.is_config(found) else int(found)


def layers_of(model: ModelConfig, layer: Any) -> list[int]:
    """The layers of the model that `layer` names. Raises ValueError as `resolve_layers`."""
    return resolve_layers(layer, model.first_layer, last_layer(model))


def resolve_layers(layer: Any, first: int, last: int) -> list[int]:
    """The layers that `layer` names among `first`..`last`: `all`, `middle`, a number or a list of numbers.

    Raises:
        ValueError: anything else, or a layer that the model does not have.
    """
    if layer == "all":
        return list(range(first, last + 1))
    if layer == "middle":
        return [(first + last + 1) // 2]
    numbers = list(layer) if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"layer={number} is not a layer: use all, middle or numbers from {first} to {last}")
        if not first <= number <= last:
            raise ValueError(f"layer={number} does not exist: this model has layers {first} to {last}")
    return numbers
