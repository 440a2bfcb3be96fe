"""Cut documents into windows of token ids, and collate windows into batches, for sequence models."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_outliers.models.backbone import Batch
from sae_outliers.utils.chat import Chat

log = logging.getLogger(__name__)

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

    def items(self, document: str | np.ndarray) -> Iterator[list[int]]:
        """Yield consecutive windows of `document` without overlap; none if it has fewer than `min_tokens` tokens.

        It is a text, a `Chat`, or token ids.

        Raise ValueError if it is none of these, or ids are not the tokenizer's.
        """
        ids = self._ids(document)
        room = self.context - len(self.prefix) - len(self.suffix)
        for start in range(0, len(ids), room):
            window = ids[start : start + room]
            if len(window) >= self.min_tokens:
                yield [*self.prefix, *window, *self.suffix]

    def _ids(self, document: Any) -> list[int]:
        """Return the token ids of a document without those that every window is given."""
        if isinstance(document, np.ndarray) and document.ndim == 1 and document.dtype.kind == "i":
            return self._bare(self._known(document))
        if not isinstance(document, str):
            raise ValueError(f"the model reads text, and the data are {type(document).__name__}: name data=text, say")
        if not isinstance(document, Chat) or not getattr(self.tokenizer, "chat_template", None):
            return self._tokenized(document)
        return self._bare(self._tokenized(self.tokenizer.apply_chat_template(document.turns, tokenize=False)))

    def _tokenized(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _bare(self, ids: list[int]) -> list[int]:
        """Return ids without the prefix and the suffix, which templates and stored ids may have in them."""
        before, after = len(self.prefix), len(ids) - len(self.suffix)
        end = after if tuple(ids[after:]) == self.suffix else len(ids)
        return ids[before if tuple(ids[:before]) == self.prefix else 0 : end]

    def _known(self, ids: np.ndarray) -> list[int]:
        largest = self._largest_given
        wrong = ids[(ids < 0) | (ids > largest)] if largest is not None else ids[ids < 0]
        if len(wrong):
            raise ValueError(
                f"the data hold the token id {wrong[0]}, but the model's tokenizer has ids from 0 to {largest}: they "
                "are of another tokenizer"
            )
        found: list[int] = ids.tolist()
        return found

    @cached_property
    def _largest_given(self) -> int | None:
        """The tokenizer's largest id, first asked for where ids are given: nothing else says whose these are."""
        largest = largest_id(self.tokenizer)
        name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
        log.warning("the data hold token ids, which are taken for those of %s, 0 to %s", name, largest)
        return largest

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


def largest_id(tokenizer: Any) -> int | None:
    """Return the largest id in a tokenizer's vocabulary; None if it does not say."""
    return max(tokenizer.get_vocab().values(), default=None) if hasattr(tokenizer, "get_vocab") else None


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
