"""The token stream: documents through the network once, giving the rows of every requested layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_outliers.activations.capture import capture
from sae_outliers.activations.split import DOC_START, SPECIAL
from sae_outliers.data.dedup import distinct
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.contract import checked
from sae_outliers.utils.boundary import named
from sae_outliers.utils.device import memory_for
from sae_outliers.utils.instantiate import instantiate

ITEMS_WITHOUT_GPU = 8
GB_OF_AN_ITEM = 4  # of a GPU's memory, where the model's config says nothing: windows may be long and layers many


@dataclass(frozen=True)
class Captured:
    """The result of one forward pass: by layer rows [n, d_model] on the device, and flags, uint8 [n] on the CPU."""

    rows: dict[int, Tensor]
    flags: dict[int, Tensor]
    items: int

    @property
    def tokens(self) -> int:
        """Rows that are not special, at the layer that has the fewest."""
        return min(int((flags & SPECIAL == 0).sum()) for flags in self.flags.values())

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows.values())


@dataclass(frozen=True)
class TokenStream:
    """The documents of one source through one network: the same rows in the same order whenever it is read.

    Attributes:
        model, data: names of the network and of the source, for messages.
        loader, source: their config nodes, which `_target_` opens.
        seed: fixes the order of documents, and which tokens of an item are drawn.
        tokens_per_item: at most so many tokens of an item; None: all.
        batch_size: items per forward pass.
    """

    model: str
    data: str
    loader: Any
    source: Any
    seed: int
    tokens_per_item: int | None
    batch_size: int
    device: torch.device

    def load_backbone(self) -> Backbone:
        """Return the network in eval mode on the device."""
        with named(f"{self.model} cannot be loaded"):
            backbone: Backbone = instantiate(self.loader)
            backbone.module.eval().to(self.device)
        return backbone

    def batches(self, backbone: Backbone, start: int = 0) -> Iterator[Batch]:
        """Yield batches from item `start` on; items before it are tokenised but not run. No document comes twice."""
        with named(f"data={self.data} cannot be read for {self.model}"):
            documents = distinct(instantiate(self.source)(self.seed))
            yield from backbone.batches(documents, self.batch_size, start)

    def rows(self, backbone: Backbone, batch: Batch, layers: Sequence[int], first: int = 0) -> Captured:
        """Return the rows that a batch, whose first item is item `first` of the stream, gives at `layers`.

        Raise ValueError where the memory does not suffice, or as `contract.checked` and `kept_tokens` do.
        """
        with memory_for(f"a forward pass of {self.batch_size} item(s)", "lower data.batch_size or take fewer layers"):
            on_device = batch.to(self.device)
            if backbone.agreed is None:
                backbone.agreed = checked(backbone, on_device)
            hidden = capture(backbone, on_device, layers)
            items = len(next(iter(hidden.values())))
            kept: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # by shape: one for all layers of most networks
            rows, flags = {}, {}
            for layer in list(hidden):
                output = hidden.pop(layer)  # goes once its rows are taken: memory holds both of one layer only
                shape = output.shape[:2]
                if shape not in kept:
                    places, of_layer = kept_tokens(shape, batch, self.tokens_per_item, self.seed, first)
                    kept[shape] = places.to(self.device, non_blocking=True), of_layer
                places, flags[layer] = kept[shape]
                rows[layer] = output.flatten(0, 1).index_select(0, places)
        return Captured(rows, flags, items)

    def read(self, backbone: Backbone, layers: Sequence[int], start: int = 0) -> Iterator[Captured]:
        """Yield what each batch from item `start` on gives at `layers`."""
        for batch in self.batches(backbone, start):
            captured = self.rows(backbone, batch, layers, start)
            start += captured.items
            yield captured


def items_per_batch(asked: int | None, by_memory: Mapping[int, int], memory: float | None) -> int:
    """Return the items per forward pass: as asked, or what the model's config says for a GPU of `memory` GB."""
    if asked is not None:
        return asked
    if memory is None:
        return ITEMS_WITHOUT_GPU
    if not by_memory:
        return max(ITEMS_WITHOUT_GPU, int(memory / GB_OF_AN_ITEM))
    smallest = min(by_memory)
    if memory < smallest:  # cards that are sold as 24 GB report a little less
        return max(1, int(by_memory[smallest] * memory / smallest))
    return max(size for least, size in by_memory.items() if least <= memory)


def token_rows(
    hidden: Tensor, batch: Batch, tokens_per_item: int | None, seed: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return the real tokens among hidden [items, positions, d_model]: rows [n, d_model], and their flags, uint8 [n].

    The other arguments are those of `kept_tokens`, which raises ValueError.
    """
    places, flags = kept_tokens(hidden.shape[:2], batch, tokens_per_item, seed, first)
    return hidden.flatten(0, 1).index_select(0, places.to(hidden.device)), flags


def kept_tokens(
    shape: torch.Size, batch: Batch, tokens_per_item: int | None, seed: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return where the real tokens are among items × positions, int64 [n], and their flags, uint8 [n], on the CPU.

    On the CPU because a GPU would have to be waited for until it knows how many they are.

    With `tokens_per_item`, at most so many tokens of an item that are not special are kept, drawn by `seed` and the
    item's number, counted from `first`.

    Raises:
        ValueError: the mask has another shape than the block's output.
    """
    mask = torch.ones(shape, dtype=torch.bool) if batch.mask is None else batch.mask.cpu()
    special = torch.zeros(shape, dtype=torch.bool) if batch.special is None else batch.special.cpu()
    if mask.shape != shape:
        raise ValueError(
            f"the mask covers [items, positions] = {list(mask.shape)}, the block's output {list(shape)}: check the "
            "model's `blocks` and its `collate`"
        )
    keep = mask
    if tokens_per_item is not None:
        keep = special | _drawn(mask & ~special, tokens_per_item, seed, first)
    flags = special * SPECIAL + _first_kept(keep, batch.begins) * DOC_START
    return keep.flatten().nonzero()[:, 0], flags[keep].to(torch.uint8)


def _drawn(candidates: Tensor, n: int, seed: int, first: int) -> Tensor:
    """Return at most `n` True entries of each row of `candidates` (bool [items, positions]), drawn at random."""
    scores = torch.stack([
        torch.rand(candidates.shape[1], generator=torch.Generator().manual_seed(seed * 1_000_003 + first + item))
        for item in range(len(candidates))
    ])  # fmt: skip
    best = (scores * candidates).topk(min(n, scores.shape[1]), dim=1).indices
    return torch.zeros_like(candidates).scatter(1, best, True) & candidates


def _first_kept(keep: Tensor, begins: Tensor | None) -> Tensor:
    """Return the first kept position of each item that begins a document, int [items, positions]."""
    firsts = torch.zeros_like(keep, dtype=torch.int64)
    rows = keep.any(1) if begins is None else keep.any(1) & begins
    firsts[rows, keep.int().argmax(1)[rows]] = 1
    return firsts
