"""Precomputed activations (see data/arrays.py) in place of a network: they pass through as layer 0."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Backbone, Batch


class PassThrough(nn.Module):
    """A network whose only block is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, activations: Tensor) -> Tensor:
        return self.block(activations)


class LayerZero(Backbone):
    """A backbone whose only layer is 0, as in the published table, because no block precedes it."""

    def block(self, layer: int) -> nn.Module:
        """Return the identity block. Raise ValueError for a layer other than 0."""
        if layer != 0:
            raise ValueError(f"layer {layer} does not exist: stored activations are layer 0")
        return self.blocks[0]


def load() -> Backbone:
    """Return a backbone whose documents are activations [tokens, d_model]; each is one item without special tokens."""
    network = PassThrough()
    return LayerZero(network, [network.block], lambda activations: [activations], collate)


def collate(items: list[Tensor]) -> Batch:
    """Return activations [items, longest, d_model], padded with zeros that the mask excludes."""
    lengths = torch.tensor([[len(item)] for item in items])
    return Batch({"activations": pad_sequence(items, batch_first=True)}, torch.arange(int(lengths.max())) < lengths)
