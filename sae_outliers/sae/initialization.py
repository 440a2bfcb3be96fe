"""Where an SAE's feature directions and its b_dec start."""

from collections.abc import Callable, Iterator
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.config import InitConfig
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.moments import Moments, effective_rank, geometric_median

Chunks = Callable[[], Iterator[Tensor]]  # a fresh pass over the tokens that the SAE sees, [tokens, d_model]
B_DEC = ("zeros", "mean", "geometric_median")
READ_TOKENS = ("datapoint", "geometric_median")  # the others follow from the moments


@torch.no_grad()
def initialise(sae: SparseAutoencoder, cfg: InitConfig, tokens: Chunks, seen: Moments, seed: int) -> None:
    """Set directions and b_dec. `seen` are the moments of `tokens`, with their covariance.

    Raises:
        ValueError: a rank that the data does not have.
    """
    DIRECTIONS[cfg.name](sae, cfg, tokens, seen, seed)
    if cfg.b_dec == "mean":
        sae.b_dec.copy_(seen.mean)
    elif cfg.b_dec == "geometric_median":
        sae.b_dec.copy_(geometric_median(tokens, seen.mean))


def random(sae: SparseAutoencoder, cfg: InitConfig, tokens: Chunks, seen: Moments, seed: int) -> None:
    """The paper's: the directions that the SAE was made with."""


def active_subspace(sae: SparseAutoencoder, cfg: InitConfig, tokens: Chunks, seen: Moments, seed: int) -> None:
    """Random directions within the `rank` principal axes of largest variance (arXiv 2508.16929).

    `rank` defaults to the effective rank, rounded up.
    """
    rank = cfg.rank or ceil(effective_rank(seen.scatter))
    if rank > sae.d_model:
        raise ValueError(f"init.rank={rank} exceeds d_model={sae.d_model}: lower it")
    axes = torch.linalg.eigh(seen.scatter).eigenvectors[:, -rank:].float()
    sae.set_directions(sae.W_dec @ axes @ axes.T)


def datapoint(sae: SparseAutoencoder, cfg: InitConfig, tokens: Chunks, seen: Moments, seed: int) -> None:
    """`blend` of the direction from the mean to a token, one drawn for each feature, and the rest random (saev)."""
    drawn = torch.randint(seen.count, (sae.n_features,), generator=torch.Generator().manual_seed(seed)).sort().values
    rows, first = [], 0
    for chunk in tokens():
        inside = drawn[(drawn >= first) & (drawn < first + len(chunk))] - first
        rows.append(chunk[inside.to(chunk.device)])
        first += len(chunk)
    towards = F.normalize(torch.cat(rows) - seen.mean.to(sae.W_dec), dim=1)
    sae.set_directions(cfg.blend * towards + (1 - cfg.blend) * sae.W_dec)


DIRECTIONS = {"random": random, "active_subspace": active_subspace, "datapoint": datapoint}
