"""Types that a config names, and the options that their constructors take.

A group such as `sae` names a type and, beside the name, its options. Which options there are, and of what type, is
said by the type's constructor alone.
"""

import collections.abc
import inspect
import math
from collections.abc import Mapping
from dataclasses import make_dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigValueError, ValidationError

from sae_outliers.utils.instantiate import check_target
from sae_outliers.utils.registry import Registry

T = TypeVar("T")
KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


class Choice(Protocol):
    """A config group that names a type: a registered one by its name, one of your own by its dotted path too."""

    name: str
    _target_: str | None


def chosen_type(registry: Registry[type[T]], base: type[T], cfg: Choice, former: Mapping[str, str]) -> type[T]:
    """Return the class that a config group names.

    `former` are dotted paths by which configs named registered types at one time, with the types' names.

    Raises:
        ValueError: there is no such type, it must not be named (`check_target`), or the class at `_target_` is not a
            `base` or bears a registered name.
    """
    if cfg._target_ is None:
        return registry[cfg.name]
    kind = imported_type(registry, base, cfg._target_, former)
    if cfg.name in registry and registry[cfg.name] is not kind:
        raise ValueError(
            f"{registry.option}={cfg.name} is a type of ours, but {registry.option}._target_={cfg._target_} another: "
            f"give yours a name of its own by {registry.option}.name"
        )
    return kind


def imported_type(registry: Registry[type[T]], base: type[T], path: str, former: Mapping[str, str]) -> type[T]:
    """Return the class at a dotted path, or the registered type that it named at one time. Raises as `chosen_type`."""
    if path in former:
        return registry[former[path]]
    check_target(path)
    module, _, name = path.rpartition(".")
    try:
        kind: type[T] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: no dot in the path
        raise ValueError(f"{registry.option} type {path} cannot be imported: {error}") from error
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise ValueError(f"{registry.option} type {path} is not a subclass of {base.__name__}")
    return kind


def typed_options(kind: type, options: Mapping[str, Any], group: str, name: str) -> dict[str, Any]:
    """Return the options converted to the types that the constructor of `kind` declares for them.

    `group` and `name` are the config's, for the messages: sae, topk.

    Raises:
        ValueError: an option that the constructor does not take, or a value that is not of its type.
    """
    declared = constructor_types(kind)
    for option in options:
        if option not in declared:
            raise ValueError(f"{group}={name} has no option {option}: leave {group}.{option} out")
    return {option: _converted(f"{group}.{option}", declared[option], value) for option, value in options.items()}


def constructor_types(kind: type) -> dict[str, Any]:
    """Return the arguments of a constructor with their annotations, those that it passes on by **kwargs included."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        constructor = vars(owner).get("__init__")
        if constructor is None or owner is object:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        hints = get_type_hints(constructor)
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {name: hints.get(name, Any) for name in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _converted(option: str, annotation: Any, value: Any) -> Any:
    if get_origin(annotation) is collections.abc.Sequence:  # OmegaConf knows only lists
        annotation = list[get_args(annotation)[0]]  # type: ignore[misc]
    try:
        schema = OmegaConf.structured(make_dataclass("Options", [("value", annotation)]))
    except (ConfigValueError, ValidationError):
        return value  # an annotation that OmegaConf does not check
    try:
        schema.value = value
    except ValidationError as error:
        raise ValueError(f"{option}={value} must be {_named(annotation)}") from error
    return OmegaConf.to_container(schema)["value"]  # type: ignore[index, call-overload]


def _named(annotation: Any) -> str:
    """Return the annotation in words: `a number`, `a number or null`, `a list, each entry a number`."""
    choices = get_args(annotation)
    if get_origin(annotation) is list:
        return f"a list, each entry {KINDS.get(choices[0], str(choices[0]))}"
    if choices:
        return " or ".join("null" if one is type(None) else KINDS.get(one, str(one)) for one in choices)
    return KINDS.get(annotation, str(annotation))


def check_file_name(option: str, value: Any) -> None:
    """Raise ValueError unless the value can be the name of a file or a folder, and of nothing elsewhere."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value.encode()) > 200:
        raise ValueError(f"{option}={value!r} must be a word of at most 200 printable characters")
    if value.startswith(".") or "/" in value or "\\" in value:
        raise ValueError(f"{option}={value} names a folder, so it cannot begin with a point or hold a / or \\")


def check_number(
    option: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Raise ValueError unless the value is None, or finite and within the bounds."""
    if value is None:
        return
    if not math.isfinite(value):
        raise ValueError(f"{option}={value} must be a finite number")
    if at_least is not None and value < at_least:
        raise ValueError(f"{option}={value} must be at least {at_least:g}")
    if above is not None and value <= above:
        raise ValueError(f"{option}={value} must be above {above:g}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{option}={value} must be at most {at_most:g}")
