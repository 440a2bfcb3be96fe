"""Where an SAE's feature directions and its b_dec start."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.moments import Moments, effective_rank, geometric_median
from sae_outliers.utils.registry import Registry

Chunks = Callable[[], Iterator[Tensor]]  # a fresh pass over the tokens that the SAE sees, [tokens, d_model]


class Settings(Protocol):
    """The config group `init`."""

    name: str
    b_dec: str
    rank: int | None
    blend: float


Start = Callable[[SparseAutoencoder, Settings, Chunks, Moments, int], None]


@dataclass(frozen=True)
class Init:
    """A way to set the directions or b_dec; `reads_tokens`: whether their moments are not enough for it."""

    start: Start
    reads_tokens: bool


INITS = Registry[Init]("init")  # of the feature directions
B_DEC_INITS = Registry[Init]("init.b_dec")


@torch.no_grad()
def initialise(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Set directions and b_dec. `moments` are those of `tokens`, with their covariance.

    Raises:
        ValueError: a rank that the data does not have.
    """
    for init in _named(cfg):
        init.start(sae, cfg, tokens, moments, seed)


def reads_tokens(cfg: Settings) -> bool:
    """Return whether the initialisation passes over the tokens themselves, beyond their moments."""
    return any(init.reads_tokens for init in _named(cfg))


def _named(cfg: Settings) -> tuple[Init, Init]:
    return INITS[cfg.name], B_DEC_INITS[cfg.b_dec]


def _register(registry: Registry[Init], name: str, reads_tokens: bool = False) -> Callable[[Start], Start]:
    def add(start: Start) -> Start:
        registry.register(name)(Init(start, reads_tokens))
        return start

    return add


@_register(INITS, "random")
def random(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Keep the directions that the SAE was made with: the paper's."""


@_register(INITS, "active_subspace")
def active_subspace(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Take random directions within the `rank` principal axes of largest variance (arXiv 2508.16929).

    `rank` defaults to the effective rank, rounded up.
    """
    rank = cfg.rank or ceil(effective_rank(moments.scatter))
    if rank > sae.d_model:
        raise ValueError(f"init.rank={rank} exceeds d_model={sae.d_model}: lower it")
    axes = torch.linalg.eigh(moments.scatter).eigenvectors[:, -rank:].float()
    sae.set_directions(sae.W_dec @ axes @ axes.T)


@_register(INITS, "datapoint", reads_tokens=True)
def datapoint(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Take `blend` of the direction from the mean to a token, drawn for each feature, and the rest random (saev)."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(moments.count, (sae.n_features,), generator=rng).sort().values
    rows, first = [], 0
    for chunk in tokens():
        inside = drawn[(drawn >= first) & (drawn < first + len(chunk))] - first
        rows.append(chunk[inside.to(chunk.device)])
        first += len(chunk)
    towards = F.normalize(torch.cat(rows) - moments.mean.to(sae.W_dec), dim=1)
    sae.set_directions(cfg.blend * towards + (1 - cfg.blend) * sae.W_dec)


@_register(B_DEC_INITS, "zeros")
def zeros(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Start b_dec at 0: the paper's."""
    sae.b_dec.zero_()


@_register(B_DEC_INITS, "mean")
def mean(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Start b_dec at the mean of the tokens."""
    sae.b_dec.copy_(moments.mean)


@_register(B_DEC_INITS, "geometric_median", reads_tokens=True)
def median(sae: SparseAutoencoder, cfg: Settings, tokens: Chunks, moments: Moments, seed: int) -> None:
    """Start b_dec at the geometric median of the tokens."""
    sae.b_dec.copy_(geometric_median(tokens, moments.mean))
