"""Transformers checkpoints, from the hub or a local folder, as backbones."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from sae_outliers.models.backbone import Backbone, Batch


@dataclass(frozen=True)
class Windows:
    """Turns documents into windows of token ids, and windows into batches.

    Attributes:
        tokenizer: any transformers tokenizer, fast or slow.
        prefix, suffix: ids of the special tokens before and after the text of every window.
        context: positions in a window, special tokens included.
        shortest: text tokens below which a window is left out: the tokens of such remnants saw too little
            context to stand for the others.
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    context: int
    shortest: int

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
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(window)] for window in windows])
        return Batch({"input_ids": ids, "attention_mask": mask.long()}, mask, mask & self._special(ids))

    def _special(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))


def load(
    checkpoint: str | Path,
    blocks: str,
    context: int,
    bos: bool = True,
    shortest: int = 16,
    **options: Any,
) -> Backbone:
    """A pretrained network without its head, in float32 and eval mode.

    Args:
        checkpoint: a hub id or a local folder.
        blocks: dotted path of the list of blocks inside the base model, such as `layers` or `encoder.layer`.
        context: positions in a window, special tokens included.
        bos: whether BOS opens each window if the tokenizer has one but puts nothing in front by itself, as is
            usual with causal language models.
        shortest: windows with fewer text tokens than this are left out.
        options: for `from_pretrained` of both model and tokenizer (`revision`, `trust_remote_code`).

    Raises ValueError if the model has no such blocks, if the checkpoint lacks their weights, or if the
    context leaves no room for text.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
    with _quiet():
        module, found = AutoModel.from_pretrained(checkpoint, output_loading_info=True, **options)
    _refuse_random_weights(checkpoint, blocks, found["missing_keys"])
    windows = Windows(tokenizer, *_around(tokenizer, bos), context, shortest)
    if context < len(windows.prefix) + len(windows.suffix) + shortest:
        raise ValueError(f"a context of {context} has no room for {shortest} tokens beside the special ones")
    return Backbone(
        # the checkpoint's own type may be bfloat16, which transformers 5 keeps
        module=module.float().eval(),
        blocks=_block_list(module, blocks),
        items=windows.items,
        collate=windows.collate,
    )


def _around(tokenizer: Any, bos: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before and after a text, read off a probe: not every tokenizer has a way to ask."""
    bare = tokenizer("A", add_special_tokens=False)["input_ids"]
    full = tokenizer("A")["input_ids"]
    start = full.index(bare[0])
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if bos and not prefix and tokenizer.bos_token_id is not None:
        prefix = (tokenizer.bos_token_id,)
    return prefix, suffix


def _block_list(module: nn.Module, path: str) -> Sequence[nn.Module]:
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if path not in lists:
        raise ValueError(f"{type(module).__name__} has no list of blocks {path!r}; it has {', '.join(lists)}")
    return list(lists[path])


def _refuse_random_weights(checkpoint: str | Path, blocks: str, missing: Iterable[str]) -> None:
    """Raise ValueError if embeddings or blocks are not the checkpoint's; what follows may be missing."""
    random = sorted(name for name in missing if name.startswith(f"{blocks}.") or "embed" in name)
    if random:
        raise ValueError(f"{checkpoint} lacks {len(random)} of the weights that are measured, {random[0]} for one")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of a head that is left out and a pooler that nothing reads."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
