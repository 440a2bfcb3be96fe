"""Heavy tails of a layer's dimensions: excess kurtosis in one pass."""

import torch
from torch import Tensor


class Kurtosis:
    """Per-dimension excess kurtosis of a stream of tokens, in float64, in one pass.

    Central sums of the powers 2 to 4 are merged chunk by chunk (Pébay 2008, "Formulas for robust, one-pass parallel
    computation of covariances and arbitrary-order statistical moments"). Heavy tails make the closed form for dead by
    ReLU too high: the best token reaches further than normal ones do (arXiv 2605.31518).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.power2 = self.power3 = self.power4 = torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Take in a chunk [tokens, d_model]."""
        if len(x) == 0:
            return
        x = x.double()
        count, mean = len(x), x.mean(0)
        centered = x - mean
        square = centered.square()
        sums = square.sum(0), (square * centered).sum(0), square.square().sum(0)
        if self.count == 0:
            self.count, self.mean, (self.power2, self.power3, self.power4) = count, mean, sums
        else:
            self._merge(count, mean, *sums)

    def _merge(self, n: int, mean: Tensor, power2: Tensor, power3: Tensor, power4: Tensor) -> None:
        m, total = self.count, self.count + n
        delta = mean - self.mean
        self.power4 = (
            self.power4
            + power4
            + delta**4 * (m * n * (m**2 - m * n + n**2) / total**3)
            + 6 * delta.square() * (m**2 * power2 + n**2 * self.power2) / total**2
            + 4 * delta * (m * power3 - n * self.power3) / total
        )
        self.power3 = (
            self.power3
            + power3
            + delta**3 * (m * n * (m - n) / total**2)
            + 3 * delta * (m * power2 - n * self.power2) / total
        )
        self.power2 = self.power2 + power2 + delta.square() * (m * n / total)
        self.mean, self.count = self.mean + delta * (n / total), total

    def excess(self) -> Tensor:
        """Return E[(x - μ)⁴]/σ⁴ - 3 of the dimensions that vary, float64; 0 for normal ones."""
        varying = self.power2 > 0
        return self.count * self.power4[varying] / self.power2[varying].square() - 3
