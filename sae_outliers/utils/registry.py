"""Map the names that a config uses to objects, which register themselves where they are defined."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A name -> object map, filled on first use by importing the modules of one package.

    Attributes:
        option: the config option whose values these names are, for error messages.
        package: the package whose modules register objects; None if the registry's own module does.
    """

    def __init__(self, option: str, package: str | None = None) -> None:
        self.option, self._package, self._found = option, package, dict[str, T]()

    def register(self, *names: str) -> Callable[[T], T]:
        """Register the decorated object under these names. Raise ValueError if a name is taken."""

        def add(item: T) -> T:
            for name in names:
                if self._found.get(name, item) is not item:
                    raise ValueError(f"{self.option}={name} is registered already, as {self._found[name]}")
                self._found[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        """Return the object called `name`. Raise ValueError, listing the known names, if there is none."""
        self._load()
        if name not in self._found:
            raise ValueError(f"{self.option}={name} does not exist: use one of {', '.join(self._found)}")
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order of registration."""
        self._load()
        return iter(self._found)

    def items(self) -> Iterator[tuple[str, T]]:
        self._load()
        return iter(self._found.items())

    def _load(self) -> None:
        # not at import: the modules that register import this one, and some of them load torch
        package, self._package = self._package, None
        if package is not None:
            for module in iter_modules(import_module(package).__path__):
                import_module(f"{package}.{module.name}")
            # in the order of the modules' names, whichever of them were imported before
            self._found = dict(sorted(self._found.items(), key=lambda item: item[1].__module__))
