"""What a manifest may have run again: it may be a colleague's, in a shared results_dir.

Settings of the schema are harmless. What imports a function by its name or runs a hub's code is taken only from
whoever types the command, or from a yaml of theirs. What passes here is checked once more where it is imported, in
`utils.instantiate`.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException

from sae_outliers.config import roles
from sae_outliers.utils.instantiate import is_named

OF_HYDRA = ("hydra/launcher", "hydra.launcher.n_workers")
LAUNCHERS = ("auto", "local_processes", "slurm")


def check_command(command: Sequence[str], trust_remote_code: bool) -> None:
    """Raise ValueError if a manifest's command does more than set options, or runs remote code unless it is trusted."""
    try:
        overrides = OverridesParser.create().parse_overrides(list(command))
    except HydraException as error:
        raise ValueError(f"{command} is no command of a sweep ({str(error).splitlines()[0]})") from error
    for override in overrides:
        _check(override, trust_remote_code)


def _check(override: Override, trust_remote_code: bool) -> None:
    said, key = str(override.input_line), override.key_or_group
    if not _is_known(key) or override.package is not None:
        raise _refused(said, "that is not an option of a run")
    for name, value in _leaves(key, override._value):
        parts = name.split(".")
        if "_target_" in parts and not (value is None or is_named(str(value))):
            raise _refused(said, "it names code that none of your configs names")
        if hidden := [part for part in parts if part.startswith("_") and part != "_target_"]:
            raise _refused(said, f"{hidden[0]} is not for manifests")
        if parts[-1] == "trust_remote_code" and value is not False and not trust_remote_code:
            raise _refused(said, "add trust_remote_code=true to this command if you trust it")
        if "${" in str(value) or (
            ("/" in key or "." not in key) and key not in ("name", "path") and ".." in str(value)
        ):
            raise _refused(said, "it reaches outside of the options")
        if key == "hydra/launcher" and value not in LAUNCHERS:
            raise _refused(said, f"a launcher is one of {', '.join(LAUNCHERS)}")
        if name == "site" and "/" in str(value):
            raise _refused(said, "a site is named, not its file")
        if key == "variants" and isinstance(value, str):
            check_command(_words(said, value), trust_remote_code)


def _words(said: str, variant: str) -> list[str]:
    try:
        return shlex.split(variant)  # as `config.expand` does: quotes of its own hide what Hydra is given
    except ValueError as error:
        raise _refused(said, f"its quotes are not closed ({error})") from error


def _is_known(key: str) -> bool:
    group, _, rest = key.partition(".")
    if key in OF_HYDRA or key in roles() or key == "experiment":
        return True
    groups = {name.partition(".")[0] for name in roles() if "." in name}
    own = {"sae", "revival", "tracker"}  # whose types have options of their own
    return (
        key in groups
        or (bool(rest) and group in own)
        or key.startswith(("model.loader.", "data.source.", "model.gpu_batch_size."))
    )


def _leaves(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Yield every scalar of a value with its dotted name: of a sweep, a list, a dict."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{_plain(name)}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(key, inner)
    elif hasattr(value, "list") and value.list is not None:  # Hydra's choice and shuffle
        yield from _leaves(key, value.list)
    elif isinstance(value, Glob):
        yield from _leaves(key, [*value.include, *value.exclude])
    else:
        yield key, _plain(value)


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _refused(override: str, why: str) -> ValueError:
    return ValueError(f"a manifest asks for {override!r}, and {why}: type the command yourself if you mean it")
