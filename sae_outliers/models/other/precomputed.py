"""Precomputed activations (see data/arrays.py) in place of a network: they pass through it.

A dump of one layer is layer 0; one with `{layer}` in its path has the numbers in the names of its files.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Backbone, Batch


class PassThrough(nn.Module):
    """A network with an identity for each layer that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.identities = nn.ModuleDict()

    def identity(self, layer: int) -> nn.Module:
        """Return the identity through which a layer's activations pass."""
        if (name := str(layer)) not in self.identities:
            self.identities[name] = nn.Identity()
        return self.identities[name]

    def forward(self, **activations: Tensor) -> None:
        """Pass the activations of each layer, by its number. Raise ValueError if one is missing."""
        _require_layers(activations, self.identities)
        for name, rows in activations.items():
            self.identity(int(name))(rows)


class StoredLayers(Backbone):
    """A backbone whose layers are those of its documents."""

    def block(self, layer: int) -> nn.Module:
        """Return the identity of a layer; whether there is one is known with the first document."""
        assert isinstance(self.module, PassThrough)
        return self.module.identity(layer)


def load() -> Backbone:
    """Return a backbone whose documents are activations [tokens, d_model], of layer 0 or by the layer's number.

    Each is one item without special tokens.
    """
    # there is no block whose output could be another than the file's
    return StoredLayers(
        PassThrough(), [], lambda document: [document], collate, agreed="layers are as the files hold them"
    )


def collate(items: list[Tensor | dict[int, Tensor]]) -> Batch:
    """Return activations [items, longest, d_model] by layer, padded with zeros that the mask excludes."""
    documents = [item if isinstance(item, dict) else {0: item} for item in items]
    padded = {
        str(layer): pad_sequence([document[layer] for document in documents], batch_first=True)
        for layer in documents[0]
    }
    lengths = torch.tensor([[len(rows) for rows in document.values()][:1] for document in documents])
    return Batch(padded, torch.arange(int(lengths.max())) < lengths)


def _require_layers(held: Iterable[str], wanted: Iterable[str]) -> None:
    held = list(held)
    if missing := set(wanted) - set(held):
        raise ValueError(f"layer {min(missing)} does not exist: stored activations are layer {', '.join(held)}")
