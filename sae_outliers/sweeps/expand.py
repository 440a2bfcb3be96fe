"""The combinations of overrides that a sweep's command names, and the config of each.

Hydra takes 60 ms to compose a config. Swept values that name no config group, such as seeds, do not change which files
are composed: they are set on a copy.
"""

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sae_outliers.config import expand
from sae_outliers.paths import is_globbed

Combination = tuple[str, ...]


class Combinations:
    """`arguments` are those of the command line; `defaults` are overrides for keys that they leave alone."""

    def __init__(
        self, config_loader: ConfigLoader, config: DictConfig, arguments: list[str], defaults: Mapping[str, Any]
    ) -> None:
        self.config_loader, self.config = config_loader, config
        self.parser = OverridesParser.create(config_loader=config_loader)
        parsed = self.parser.parse_overrides(arguments)
        named = {override.key_or_group for override in parsed}
        parsed += self.parser.parse_overrides([f"{k}={v}" for k, v in defaults.items() if k not in named])
        self.plain = {o.get_key_element() for o in parsed if self._is_plain(o)}
        self.all = list(itertools.product(*(list(self._values(override)) for override in parsed)))
        self.bases: dict[Combination, Any] = {}

    def composed(self) -> Iterator[tuple[Combination, Any, list[Any]]]:
        """Yield each combination with its config and the configs of its variants."""
        for overrides in self.all:
            config = self.compose(overrides)
            yield overrides, config, expand(config, partial(self._variant, overrides))

    def _variant(self, overrides: Sequence[str], variant: Sequence[str]) -> Any:
        return self.compose([*overrides, *variant])

    def compose(self, overrides: Sequence[str]) -> Any:
        """Return the config that these overrides give."""
        plain = [override for override in overrides if override.partition("=")[0] in self.plain]
        rest = tuple(override for override in overrides if override.partition("=")[0] not in self.plain)
        if rest not in self.bases:
            self.bases[rest] = self._composed(rest)
        config = copy.deepcopy(self.bases[rest])
        try:
            for override in self.parser.parse_overrides(plain):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:  # Hydra's own message says what is wrong
            return self._composed(overrides)
        return config

    def _composed(self, overrides: Sequence[str]) -> Any:
        config = self.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    def _is_plain(self, override: Override) -> bool:
        """Return whether it sweeps over values of an existing option, and not over the files of a config group."""
        swept = override.is_sweep_override() and not (override.is_add() or override.is_force_add())
        return swept and not self.config_loader.get_group_options(override.key_or_group)

    def _values(self, override: Override) -> Iterator[str]:
        key = override.get_key_element()
        value = override.value()
        if isinstance(value, Glob):
            yield from (f"{key}={option}" for option in self._globbed(override.key_or_group, value))
        elif override.is_sweep_override():
            yield from (f"{key}={choice}" for choice in override.sweep_string_iterator())
        else:
            yield f"{key}={override.get_value_element_as_str()}"

    def _globbed(self, group: str, glob: Glob) -> list[str]:
        """Return the options of a config group that a glob names. `folder/*` looks into that folder, `*` at the top."""
        found: list[str] = []
        for pattern in glob.include:
            folder, _, name = pattern.rpartition("/")
            inside = f"{group}/{folder}" if folder else group
            excluded = [e.rpartition("/")[2] for e in glob.exclude if e.rpartition("/")[0] == folder]
            options = Glob(include=[name], exclude=excluded).filter(self._options(inside))
            found += [f"{folder}/{option}" if folder else option for option in options]
        if not found:
            sys.exit(f"{group}=glob({','.join(glob.include)}) names nothing in conf/{group}/: check the folder's name")
        return found

    def _options(self, group: str) -> list[str]:
        """Return the options of a group that a glob takes in."""
        return [option for option in self.config_loader.get_group_options(group) if is_globbed(group, option)]
