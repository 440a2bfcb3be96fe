"""No network: activations that were stored elsewhere (see data/stored.py) pass through as layer 0."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Backbone, Batch


class PassThrough(nn.Module):
    """A network of one block, which changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, activations: Tensor) -> Tensor:
        return self.block(activations)


class LayerZero(Backbone):
    """A backbone whose one layer is number 0, as the published table counts it: it follows no block."""

    def block(self, layer: int) -> nn.Module:
        if layer != 0:
            raise ValueError(f"layer {layer} does not exist: stored activations are layer 0")
        return self.blocks[0]


def load() -> Backbone:
    """A backbone whose documents are activations [tokens, d_model]; each is one item, and no token is special."""
    network = PassThrough()
    return LayerZero(network, [network.block], lambda activations: [activations], collate)


def collate(items: list[Tensor]) -> Batch:
    """Activations [items, longest, d_model], with zeros behind the shorter ones, which are no tokens."""
    lengths = torch.tensor([[len(item)] for item in items])
    return Batch({"activations": pad_sequence(items, batch_first=True)}, torch.arange(int(lengths.max())) < lengths)
