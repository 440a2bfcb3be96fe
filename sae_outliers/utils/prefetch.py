"""Read ahead of a GPU: what comes next is read, and copied to it, while it computes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
BATCHES_AHEAD = 2
_END = object()


def read_ahead(items: Iterable[T], n: int) -> Iterator[T]:
    """Yield the items in their order, while a thread has the next `n` made; what it raises is raised here in turn."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, iterator, _END) for _ in range(n))
        while (item := coming.popleft().result()) is not _END:
            coming.append(thread.submit(next, iterator, _END))
            yield cast(T, item)


def on_device(tensors: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the tensors of the CPU on `device`; for a GPU a thread reads ahead, into memory that is copied from as it
    computes."""
    if device.type == "cpu":
        return iter(tensors)
    pinned = read_ahead((x.pin_memory() for x in tensors), BATCHES_AHEAD)
    return (x.to(device, non_blocking=True) for x in pinned)
