"""Numbers, which a synthetic model turns into tokens."""

from collections.abc import Iterator
from itertools import count


class Numbers:
    """Numbers without end, others for each seed."""

    def __call__(self, seed: int) -> Iterator[int]:
        return count(seed * 10**9)
