"""A synthetic "network" whose activations are sparse sums of known directions, plus a mean in a few dimensions.

It takes the place of a pretrained network, so that the high-γ regime can be studied without one. Its records have the
domain `synthetic`, which the tables of pretrained models exclude.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch


class SparseSums(nn.Module):
    """Synthetic activations [items, positions, d_model]; an item's number is the seed of its tokens.

    A token is the sum of `active` of the `n_directions` unit directions, with exponentially distributed coefficients,
    plus the mean, which lies in the first `outlier_dims` dimensions. Direction i is drawn with a probability of about
    1 / sqrt(i + 1). Without the mean, the norm of a token is near `spread`, by default d_model as after the paper's
    preprocessing; the norm of the mean is `gamma` times that. An SAE whose seed is the network's `seed` draws the same
    directions and begins at the true features: take one that no SAE has.
    """

    def __init__(
        self,
        d_model: int,
        n_directions: int,
        active: int,
        outlier_dims: int,
        gamma: float,
        positions: int,
        seed: int,
        spread: float | None = None,
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.active, self.positions = active, positions
        directions = torch.randn(n_directions, d_model, generator=rng)
        spread = d_model if spread is None else spread
        self.directions = nn.Parameter(F.normalize(directions, dim=1) * spread / (2 * active) ** 0.5)
        mean = torch.zeros(d_model)
        mean[:outlier_dims] = gamma * spread / outlier_dims**0.5
        self.mean = nn.Parameter(mean)

    def forward(self, numbers: Tensor) -> Tensor:
        return torch.stack([self._tokens(number) for number in numbers.tolist()])

    def _tokens(self, number: int) -> Tensor:
        rng = torch.Generator().manual_seed(number)  # on the CPU, so that every device sees the same tokens
        n_directions = len(self.directions)
        popularity = -0.5 * torch.arange(1, n_directions + 1).log()
        # Gumbel top-k: draws `active` directions without replacement
        gumbel = -torch.empty(self.positions, n_directions).exponential_(generator=rng).log()
        chosen = (popularity + gumbel).topk(self.active, dim=1).indices
        sizes = torch.empty(chosen.shape).exponential_(generator=rng)
        device = self.directions.device
        return (
            F.embedding_bag(chosen.to(device), self.directions, per_sample_weights=sizes.to(device), mode="sum")
            + self.mean
        )


class OneBlock(nn.Module):
    """A network with a single block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, numbers: Tensor) -> Tensor:
        return self.block(numbers)


def load(**options: float) -> Backbone:
    """Return a backbone whose documents are item numbers; `options` are those of `SparseSums`."""
    network = OneBlock(SparseSums(**options))  # type: ignore[arg-type]
    return Backbone(network, [network.block], lambda number: [number], lambda n: Batch({"numbers": torch.tensor(n)}))


def directions(loader: Backbone) -> Tensor:
    """Return the true features of a backbone that `load` made, [n_directions, d_model], for `model.true_features`."""
    (block,) = loader.blocks
    assert isinstance(block, SparseSums)
    return block.directions.detach()
