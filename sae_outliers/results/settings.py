"""The settings that determine a run's results, flat: what its id is a digest of, and what its record keeps."""

from collections.abc import Iterator, Mapping
from typing import Any

from sae_outliers.config import EFFECTS, Effect, role_of, sae_seed_of
from sae_outliers.utils.instantiate import stable_name

BY_NAME = ("sae._target_", "revival._target_")  # these types are known by their registered names


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that determines the results under a resolved config, by its dotted key.

    Left out are those that affect nothing, those of the training where none takes place, and values that change
    nothing: None, and a setting's neutral value. So a new option leaves the settings of every earlier run as they are.
    Components go by their stable names.
    """
    trained = config["train"]["steps"] > 0
    seeds = {"sae_seed": sae_seed_of(config["seed"], config["sae_seed"])}
    return dict(_determining(config, "training" if trained else "init")) | seeds


def activation_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the activations, as `settings_of`."""
    return dict(_determining(config, "activations"))


def _determining(config: Mapping[str, Any], stage: Effect) -> Iterator[tuple[str, Any]]:
    """The settings that affect a stage or one before it."""
    stages = EFFECTS[: EFFECTS.index(stage) + 1]
    for key, value in _flat(config, ""):
        role = role_of(key)
        if role.affects in stages and value is not None and value != role.neutral:
            yield key, value


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" in BY_NAME and str(value).startswith("sae_outliers."):
            continue  # of version 0.1, which named our own classes in their yamls
        else:
            yield f"{prefix}{key}", stable_name(value) if key == "_target_" and value else _canonical(value)


def _canonical(value: Any) -> Any:
    """The same value for 1 and 1.0: options of a type are numbers as the command line had them."""
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
