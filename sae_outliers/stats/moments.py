"""Severity of a layer's activation outliers: γ, effective rank, outlier dimensions (arXiv 2605.31518)."""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Chunks = Callable[[], Iterator[Tensor]]  # a fresh pass over the tokens, in chunks [tokens, d_model]


class Moments:
    """Count, mean and scatter of a stream of tokens, in one pass, in float64.

    Chunks are merged by Chan's rule: at γ = 50 the textbook E[x²] - E[x]² loses every digit of the variance in
    float32. With `covariance`, the scatter is the full [d_model, d_model] matrix, else its diagonal.
    """

    def __init__(self, covariance: bool = False) -> None:
        self.covariance = covariance
        self.count = 0
        self.mean = torch.zeros(())
        self.scatter = torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Take in a chunk [tokens, d_model]."""
        if len(x) == 0:
            return
        x = x.double()
        mean = x.mean(0)
        centered = x - mean
        scatter = centered.T @ centered if self.covariance else centered.square().sum(0)
        self._merge(len(x), mean, scatter)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self.count == 0:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total = self.count + count
        delta = mean - self.mean
        between = torch.outer(delta, delta) if self.covariance else delta.square()
        self.scatter = self.scatter + scatter + between * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def shifted(self, shift: Tensor) -> "Moments":
        """Return the moments of the same tokens with `shift` [d_model] added to each."""
        result = Moments(self.covariance)
        result.count, result.mean, result.scatter = self.count, self.mean + shift, self.scatter
        return result

    def mapped(self, shift: Tensor, linear: Tensor | None, scale: Tensor | None = None) -> "Moments":
        """Return the moments of (x - shift) @ linear * scale over the same tokens; a map needs the full covariance."""
        result = self.shifted(-shift.double())
        if linear is not None:
            by = linear.double()
            result.mean, result.scatter = result.mean @ by, by.T @ result.scatter @ by
        if scale is not None:
            by = scale.double()
            result.mean, result.scatter = result.mean * by, result.scatter * by.square()
        return result

    @property
    def variance(self) -> Tensor:
        """Return the population variance of each dimension, [d_model]."""
        diagonal = self.scatter.diagonal() if self.covariance else self.scatter
        return diagonal / self.count

    @property
    def square_norm(self) -> Tensor:
        """Return the mean over tokens of ||x||², a number."""
        return self.mean.square().sum() + self.variance.sum()

    @property
    def gamma(self) -> float:
        """Return γ = ||μ|| / ||σ||. Raises ValueError where no dimension varies."""
        spread = self.variance.sum().sqrt().item()
        if not spread > 0:
            raise ValueError(f"γ is not defined: none of the dimensions varies over {self.count} tokens")
        return self.mean.norm().item() / spread


def moments(chunks: Iterable[Tensor], covariance: bool = False) -> Moments:
    """Return the moments of tokens in chunks [tokens, d_model], with the full covariance or its diagonal."""
    result = Moments(covariance)
    for chunk in chunks:
        result.update(chunk)
    return result


def effective_rank(covariance: Tensor) -> float:
    """Return exp(entropy(λ / Σλ)) over the eigenvalues λ of a covariance [d_model, d_model] or a multiple.

    A tensor that was asked for before, and is unchanged, is not decomposed again: variants of a run share theirs.
    """
    if covariance.is_inference():  # which does not say whether it is unchanged
        return _effective_rank(covariance)
    version, rank = _RANKS.get(covariance, (None, 0.0))
    if version != covariance._version:
        version, rank = covariance._version, _effective_rank(covariance)
        _RANKS[covariance] = version, rank
    return rank


_RANKS: MutableMapping[Tensor, tuple[int | None, float]] = WeakTensorKeyDictionary()


def _effective_rank(covariance: Tensor) -> float:
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    p = eigenvalues / eigenvalues.sum()
    return torch.special.entr(p).sum().exp().item()


@dataclass(frozen=True)
class OutlierDim:
    index: int
    ratio: float  # |μ| / σ of the dimension


def outlier_dims(m: Moments, n: int = 5) -> list[OutlierDim]:
    """Return the `n` of [d_model] dimensions with the largest |μ| / σ, largest first, without constant ones."""
    varying = m.variance > 0
    ratio = torch.where(varying, m.mean.abs() / m.variance.sqrt(), torch.zeros_like(m.mean))
    values, indices = ratio.topk(min(n, int(varying.sum())))
    return [OutlierDim(int(i), float(v)) for i, v in zip(indices, values, strict=True)]


def geometric_median(chunks: Chunks, start: Tensor, tolerance: float = 1e-6, max_passes: int = 200) -> Tensor:
    """Return the point [d_model] with the least summed distance to the tokens, by Weiszfeld's iteration, in float64.

    Each iteration is one pass over the tokens, so memory holds one chunk. It stops once a step moves the point by
    less than `tolerance` of the mean distance. `start` is usually the mean.
    """
    median = start.double()
    for _ in range(max_passes):
        weighted, weight, distances, count = torch.zeros_like(median), 0.0, 0.0, 0
        for chunk in chunks():
            x = chunk.double()
            distance = (x - median).norm(dim=1)
            w = distance.clamp(min=torch.finfo(torch.float64).tiny ** 0.5).reciprocal()
            weighted += w @ x
            weight += w.sum().item()
            distances += distance.sum().item()
            count += len(x)
        step = weighted / weight - median
        median = median + step
        if step.norm().item() <= tolerance * distances / count:
            break
    return median
