"""Documents as windows of token ids, and windows as batches: what the tokens of a sequence model are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Batch


@dataclass(frozen=True)
class Windows:
    """Turns documents into windows of token ids, and windows into batches.

    Attributes:
        tokenizer: any transformers tokenizer, fast or slow.
        prefix, suffix: ids before and after the text of every window; in these places they count as special.
        context: positions in a window, prefix and suffix included.
        shortest: text tokens below which a window is left out: the tokens of such remnants saw too little
            context to stand for the others.

    Raises ValueError if the context leaves no room for text.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    context: int
    shortest: int

    def __post_init__(self) -> None:
        if self.context < len(self.prefix) + len(self.suffix) + self.shortest:
            raise ValueError(
                f"a context of {self.context} has no room for {self.shortest} tokens beside the special ones"
            )

    def items(self, document: str) -> Iterator[list[int]]:
        """Consecutive windows of `document`, without overlap; none if it has fewer than `shortest` tokens."""
        ids = self.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        room = self.context - len(self.prefix) - len(self.suffix)
        for start in range(0, len(ids), room):
            window = ids[start : start + room]
            if len(window) >= self.shortest:
                yield [*self.prefix, *window, *self.suffix]

    def collate(self, windows: list[list[int]]) -> Batch:
        """Inputs and masks [windows, longest window], padded on the right."""
        rows = [torch.tensor(window) for window in windows]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
        # from the lengths: the padding id can be a real token too, as in GPT-2
        lengths = torch.tensor([[len(window)] for window in windows])
        mask = torch.arange(ids.shape[1]) < lengths
        return Batch({"input_ids": ids, "attention_mask": mask.long()}, mask, mask & self._special(ids, lengths))

    def _special(self, ids: Tensor, lengths: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1])
        around = (position < len(self.prefix)) | (position >= lengths - len(self.suffix))
        return around | torch.isin(ids, torch.tensor(special_ids(self.tokenizer), dtype=ids.dtype))


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are no text: BOS and the like, and what the tokenizer was told to hold as special.

    The second kind (gLM2's strand signs) is among `all_special_ids` in some releases of transformers only.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})


def around(tokenizer: Any, bos: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before and after a text, read off a probe: not every tokenizer has a way to ask.

    Where the tokenizer has a BOS but puts nothing in front by itself, `bos` decides whether BOS stands there.
    """
    bare = tokenizer("A", add_special_tokens=False)["input_ids"]
    full = tokenizer("A")["input_ids"]
    start = full.index(bare[0])
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if bos and not prefix and tokenizer.bos_token_id is not None:
        prefix = (tokenizer.bos_token_id,)
    return prefix, suffix
