"""The token stream: documents through the network once, giving the rows of every requested layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_outliers.activations.capture import capture
from sae_outliers.activations.store import DOC_START, SPECIAL
from sae_outliers.data.dedup import distinct
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.contract import checked
from sae_outliers.utils.instantiate import instantiate

ITEMS_WITHOUT_GPU = 8


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
        backbone: Backbone = instantiate(self.loader)
        backbone.module.eval().to(self.device)
        return backbone

    def batches(self, backbone: Backbone, start: int = 0) -> Iterator[Batch]:
        """Yield batches from item `start` on; items before it are tokenised but not run. No document comes twice."""
        documents = distinct(instantiate(self.source)(self.seed))
        return backbone.batches(documents, self.batch_size, start)

    def rows(self, backbone: Backbone, batch: Batch, layers: Sequence[int], first: int = 0) -> Captured:
        """Return the rows that a batch, whose first item is item `first` of the stream, gives at `layers`."""
        on_device = batch.to(self.device)
        if backbone.agreed is None:
            backbone.agreed = checked(backbone, on_device)
        hidden = capture(backbone, on_device, layers)
        per_layer = {
            layer: token_rows(output, batch, self.tokens_per_item, self.seed, first) for layer, output in hidden.items()
        }
        return Captured(
            rows={layer: rows for layer, (rows, _) in per_layer.items()},
            flags={layer: flags for layer, (_, flags) in per_layer.items()},
            items=len(next(iter(hidden.values()))),
        )

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
    fitting = [size for least, size in by_memory.items() if memory is not None and least <= memory]
    return max(fitting, default=ITEMS_WITHOUT_GPU)


def token_rows(
    hidden: Tensor, batch: Batch, tokens_per_item: int | None, seed: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return the real tokens among hidden [items, positions, d_model]: rows [n, d_model], and their flags, uint8 [n].

    With `tokens_per_item`, at most so many tokens of an item that are not special are kept, drawn by `seed` and the
    item's number, counted from `first`.

    Raises:
        ValueError: the mask has another shape than the block's output.
    """
    shape = hidden.shape[:2]
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
    return hidden[keep.to(hidden.device)], flags[keep].to(torch.uint8)


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
