"""Cut documents into windows of token ids, and collate windows into batches, for sequence models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Batch

RESIDUES = "MKTAYIAKQRQISFVKSHFSRQ"
LARGEST_OF_RESIDUES = 200  # tokens in the vocabulary of a model of single residues


@dataclass(frozen=True)
class TokenWindows:
    """The windows of a sequence model: how documents are cut and how windows become batches.

    Attributes:
        tokenizer: any transformers tokenizer, fast or slow.
        prefix, suffix: ids before and after the text of every window; these positions are special.
        context: positions in a window, including prefix and suffix.
        min_tokens: windows with fewer text tokens are skipped, because tokens with little context are not
            representative.

    Raise ValueError if the context leaves no room for text.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    context: int
    min_tokens: int

    def __post_init__(self) -> None:
        if self.context < len(self.prefix) + len(self.suffix) + self.min_tokens:
            raise ValueError(
                f"a context of {self.context} has no room for {self.min_tokens} tokens in addition to the special ones"
            )

    def items(self, document: str) -> Iterator[list[int]]:
        """Yield consecutive windows of `document` without overlap; none if it has fewer than `min_tokens` tokens.

        Raise ValueError if it is no text.
        """
        if not isinstance(document, str):
            raise ValueError(f"the model reads text, and the data are {type(document).__name__}: name data=text, say")
        ids = self.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        room = self.context - len(self.prefix) - len(self.suffix)
        for start in range(0, len(ids), room):
            window = ids[start : start + room]
            if len(window) >= self.min_tokens:
                yield [*self.prefix, *window, *self.suffix]

    def collate(self, windows: list[list[int]]) -> Batch:
        """Return inputs and masks [windows, longest window], padded on the right."""
        rows = [torch.tensor(window) for window in windows]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0)
        # by length, because in some vocabularies, such as GPT-2's, the padding id is a token as well
        lengths = torch.tensor([[len(window)] for window in windows])
        mask = torch.arange(ids.shape[1]) < lengths
        return Batch({"input_ids": ids, "attention_mask": mask.long()}, mask, mask & self._special(ids, lengths))

    def _special(self, ids: Tensor, lengths: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1])
        outside_text = (position < len(self.prefix)) | (position >= lengths - len(self.suffix))
        return outside_text | torch.isin(ids, torch.tensor(special_ids(self.tokenizer), dtype=ids.dtype))


def wants_spaces(tokenizer: Any) -> bool:
    """Return True for the tokenizer of a protein model (ProtBERT, ProtT5) that knows spaced residues only."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not hasattr(tokenizer, "get_vocab") or len(tokenizer.get_vocab()) > LARGEST_OF_RESIDUES:
        return False
    close, apart = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (RESIDUES, " ".join(RESIDUES)))
    return unknown in close and unknown not in apart


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens: BOS and the like, and tokens that were added as special.

    Only some releases of transformers include the latter (such as gLM2's strand signs) in `all_special_ids`.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})


def special_tokens_around(tokenizer: Any, bos: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the special tokens that the tokenizer puts before and after a text.

    If it has a BOS token but puts nothing before a text, `bos=True` adds BOS there.
    """
    # found by tokenizing a probe, because tokenizers have no common interface for it
    bare = tokenizer("A", add_special_tokens=False)["input_ids"]
    full = tokenizer("A")["input_ids"]
    start = full.index(bare[0])
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if bos and not prefix and tokenizer.bos_token_id is not None:
        prefix = (tokenizer.bos_token_id,)
    return prefix, suffix
