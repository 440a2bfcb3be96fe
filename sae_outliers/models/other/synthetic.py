"""A "network" whose activations are made up: sparse sums of known directions, with a mean in a few dimensions.

It stands where a pretrained network would, so that the high-γ regime can be studied without one. Its records carry
the domain `synthetic`, which no table of pretrained models takes in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch


class SparseSums(nn.Module):
    """Activations [items, positions, d_model] of numbered items; an item's number fixes its tokens.

    A token is the sum of `active` of the `n_directions` unit directions, with sizes exponentially distributed, and of
    the mean, which lies in the first `outlier_dims` dimensions. Direction i is chosen about as often as
    1 / sqrt(i + 1). Without the mean, tokens have a norm near d_model, as the paper's preprocessing leaves them; the
    mean has `gamma` times that.
    """

    def __init__(
        self, d_model: int, n_directions: int, active: int, outlier_dims: int, gamma: float, positions: int
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.active, self.positions = active, positions
        directions = torch.randn(n_directions, d_model, generator=rng)
        self.directions = nn.Parameter(F.normalize(directions, dim=1) * d_model / (2 * active) ** 0.5)
        mean = torch.zeros(d_model)
        mean[:outlier_dims] = gamma * d_model / outlier_dims**0.5
        self.mean = nn.Parameter(mean)

    def forward(self, numbers: Tensor) -> Tensor:
        return torch.stack([self._tokens(number) for number in numbers.tolist()])

    def _tokens(self, number: int) -> Tensor:
        rng = torch.Generator().manual_seed(number)  # on the CPU, so that every device sees the same tokens
        n_directions = len(self.directions)
        popularity = -0.5 * torch.arange(1, n_directions + 1).log()
        gumbel = -torch.empty(self.positions, n_directions).exponential_(generator=rng).log()
        chosen = (popularity + gumbel).topk(self.active, dim=1).indices
        sizes = torch.empty(chosen.shape).exponential_(generator=rng)
        device = self.directions.device
        return (
            F.embedding_bag(chosen.to(device), self.directions, per_sample_weights=sizes.to(device), mode="sum")
            + self.mean
        )


class OneBlock(nn.Module):
    """A network of one block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, numbers: Tensor) -> Tensor:
        return self.block(numbers)


def load(**options: float) -> Backbone:
    """A backbone whose documents are the numbers of items; `options` are those of `SparseSums`."""
    network = OneBlock(SparseSums(**options))  # type: ignore[arg-type]
    return Backbone(network, [network.block], lambda number: [number], lambda n: Batch({"numbers": torch.tensor(n)}))
