"""What a device can do at best, by measuring it, and the least time that a piece of work then takes."""

from dataclasses import dataclass

import torch

from tests.benchmarks.timing import seconds_of

REPEATS = 5


@dataclass(frozen=True)
class Work:
    """The least that must be done: operations of matrix products, and bytes that go to or from memory."""

    flops: float
    bytes: float

    def __mul__(self, times: int) -> "Work":
        return Work(times * self.flops, times * self.bytes)


@dataclass(frozen=True)
class Roofline:
    """Of a device, by a square product in float32 (no TF32) and by copying.

    Attributes:
        flops_s: operations a second.
        bytes_s: bytes a second, read and written.
    """

    flops_s: float
    bytes_s: float

    def seconds(self, work: Work) -> float:
        """Return the least time: no more operations, and no more traffic, than the device can."""
        return max(work.flops / self.flops_s, work.bytes / self.bytes_s)


def measured(device: torch.device, width: int) -> Roofline:
    """Return the best of a few products of `width` by `width`, and of copies of as much."""
    a, b = (torch.randn(width, width, device=device) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    product = min(seconds_of(lambda: torch.mm(a, b, out=out), device) for _ in range(REPEATS))
    copy = min(seconds_of(lambda: out.copy_(a), device) for _ in range(REPEATS))
    return Roofline(2 * width**3 / product, 2 * a.nbytes / copy)
