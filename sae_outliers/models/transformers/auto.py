"""Load checkpoints of transformers models, from the hub or a local folder, as backbones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoTokenizer

from sae_outliers.models.backbone import Backbone
from sae_outliers.models.blocks import block_list, blocks_path
from sae_outliers.models.transformers.remote_code import (
    construct,
    load_remote_code_model,
    permitted_code,
    revision_kwargs,
)
from sae_outliers.models.windows import TokenWindows, special_tokens_around

DTYPES = ("float32", "bfloat16", "float16", None)


def load(
    checkpoint: str | Path,
    blocks: str | None = None,
    *,
    context: int,
    bos: bool = True,
    shortest: int = 16,
    dtype: str | None = "float32",
    revision: str | None = None,
    code: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    tokenizer: Any = None,
) -> Backbone:
    """Return a pretrained network in eval mode, without its head if transformers implements it.

    Args:
        checkpoint: a hub id or a local folder.
        blocks: dotted path of the list of blocks inside the model, such as `layers` or `encoder.layer`; None:
            detected.
        context: positions in a window, including special tokens.
        bos: whether to begin each window with BOS if the tokenizer has one but does not add it, as is usual for causal
            language models.
        shortest: windows with fewer text tokens are skipped.
        dtype: type of weights and activations; None: the checkpoint's, or the one that the remote code chooses.
        revision: commit of the hub repository, for weights, configuration and tokenizer.
        code: `repository@commit` of the model's Python code, if transformers does not implement the model.
        trust_remote_code: whether that code may run.
        attn_implementation: transformers' name of an attention kernel; None: the default of transformers.
        tokenizer: the tokenizer to use instead of the checkpoint's.

    Raise ValueError if the blocks are not found, if the checkpoint lacks their weights, if the context leaves no room
    for text, if `dtype` is unknown, or if the model needs remote code that is not allowed or not pinned.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.loader.dtype={dtype} is not known: use float32, bfloat16, float16 or null")
    code = permitted_code(checkpoint, revision, code, trust_remote_code)
    if code is None:
        module, missing = _load_native(checkpoint, revision, dtype, attn_implementation)
    else:
        module, missing = load_remote_code_model(checkpoint, revision, code), []
    path = blocks_path(module, blocks)
    _refuse_random_weights(checkpoint, path, missing)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(checkpoint, **revision_kwargs(revision, code))
    windows = TokenWindows(tokenizer, *special_tokens_around(tokenizer, bos), context, shortest)
    return Backbone(prepare_for_inference(module, dtype), block_list(module, path), windows.items, windows.collate)


@cache
def count_blocks(
    checkpoint: str,
    blocks: str | None = None,
    revision: str | None = None,
    code: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Return the number of blocks of a checkpoint from its configuration alone. Arguments and errors: see `load`."""
    code = permitted_code(checkpoint, revision, code, trust_remote_code)
    with torch.device("meta"):  # allocates no memory for the weights
        module = construct(checkpoint, revision, code)
    return len(block_list(module, blocks_path(module, blocks)))


def prepare_for_inference(module: nn.Module, dtype: str | None) -> nn.Module:
    """Return `module` in eval mode, cast to `dtype`, and without a cache of keys and values."""
    config: Any = module.config
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return (module if dtype is None else module.to(getattr(torch, dtype))).eval()


def _load_native(
    checkpoint: str | Path, revision: str | None, dtype: str | None, attn_implementation: str | None
) -> tuple[nn.Module, Iterable[str]]:
    """Load a model that transformers implements; return it and the names of weights that the checkpoint lacks."""
    options: dict[str, Any] = revision_kwargs(revision)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with _only_errors():  # torch_dtype: transformers 5 prefers dtype but accepts both, 4.48 only this one
        module, found = AutoModel.from_pretrained(
            checkpoint, output_loading_info=True, torch_dtype=dtype or "auto", **options
        )
    return module, found["missing_keys"]


def _refuse_random_weights(checkpoint: str | Path, blocks: str, missing: Iterable[str]) -> None:
    """Raise ValueError if weights of embeddings or blocks are missing; those of later parts may be."""
    # transformers would initialise them at random; version 4 lists them with the prefix of a model with a head
    random = sorted(name for name in missing if f".{blocks}." in f".{name}" or "embed" in name)
    if random:
        raise ValueError(f"{checkpoint} lacks {len(random)} of the weights that are measured, {random[0]} for one")


@contextmanager
def _only_errors() -> Iterator[None]:
    """Silence transformers' report of the unused head and the missing pooler, neither of which matters here."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
