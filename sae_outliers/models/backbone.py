"""`Backbone`, which every loader returns: a network, its blocks, and how documents become its inputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass, with masks that say which positions are tokens.

    Attributes:
        inputs: keyword arguments of the network's `forward`.
        mask: bool [items, positions], True at tokens and False at padding; None if every position is a token.
        special: bool [items, positions], True for BOS, CLS, EOS, SEP and register tokens; None if there are none.
            Special tokens are tokens: `special` implies `mask`.
        begins: bool [items], True for the first item of its document; `Backbone.batches` sets it.
    """

    inputs: dict[str, Tensor]
    mask: Tensor | None = None
    special: Tensor | None = None
    begins: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return a copy on `device`; `begins` stays on the CPU, where it is read."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, move(self.mask), move(self.special), self.begins)


def first_output(output: Any) -> Tensor:
    """Return a block's residual stream, [items, positions, d_model]: its output, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


@dataclass
class Backbone:
    """A pretrained network in eval mode.

    Attributes:
        module: the network; called as `module(**batch.inputs)`.
        blocks: `blocks[i]` is the module whose output is layer `i + 1`; one that stands there several times gives a
            layer at each of its runs, in their order.
        items: turns one document into items for the network, such as a text into windows of token ids; `collate`
            defines what an item is.
        collate: turns a list of items into one `Batch`, padding and masking as needed.
        hidden: turns a block's raw output into [items, positions, d_model].
        agreed: what agreed with the model's library, in words, once the first batch has been checked.
    """

    module: nn.Module
    blocks: Sequence[nn.Module]
    items: Callable[[Any], Iterable[Any]]
    collate: Callable[[list[Any]], Batch]
    hidden: Callable[[Any], Tensor] = first_output
    agreed: str | None = None

    def block(self, layer: int) -> nn.Module:
        """Return the module whose output is `layer` (1-based). Raise ValueError if there is no such layer."""
        if not 1 <= layer <= len(self.blocks):
            raise ValueError(f"layer {layer} does not exist: this model has layers 1 to {len(self.blocks)}")
        return self.blocks[layer - 1]

    def run_of(self, layer: int) -> int:
        """Return at which of its runs in a forward pass, counted from 1, the block of `layer` gives that layer."""
        block = self.block(layer)
        return 1 + sum(earlier is block for earlier in self.blocks[: max(layer - 1, 0)])

    def batches(self, documents: Iterable[Any], batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches of `batch_size` items in the order of the documents, beginning with item `start` (0-based)."""
        items = ((i == 0, item) for document in documents for i, item in enumerate(self.items(document)))
        wanted = islice(items, start, None)
        while chunk := list(islice(wanted, batch_size)):
            begins, members = zip(*chunk, strict=True)
            yield replace(self.collate(list(members)), begins=torch.tensor(begins))
