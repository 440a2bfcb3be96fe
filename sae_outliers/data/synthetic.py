"""Item numbers, which the synthetic network turns into tokens."""

from collections.abc import Iterator
from itertools import count


class Numbers:
    """A source of endless item numbers, different for each seed."""

    def __call__(self, seed: int) -> Iterator[int]:
        return count(seed * 10**9)
