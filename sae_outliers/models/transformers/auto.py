"""Transformers checkpoints, from the hub or a local folder, as backbones."""

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
from sae_outliers.models.transformers.remote_code import at, construct, load_foreign, permitted_code
from sae_outliers.models.windows import Windows, around

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
    """A pretrained network, without its head if transformers knows it, in eval mode.

    Args:
        checkpoint: a hub id or a local folder.
        blocks: dotted path of the list of blocks inside the model, such as `layers` or `encoder.layer`; None: found.
        context: positions in a window, special tokens included.
        bos: whether BOS opens each window if the tokenizer has one but puts nothing in front by itself, as is
            usual with causal language models.
        shortest: windows with fewer text tokens than this are left out.
        dtype: of weights and activations; None: as the checkpoint is stored, or as the remote code makes it.
        revision: commit of the hub repository, for weights, configuration and tokenizer.
        code: `repository@commit` of the Python code that runs the model, if transformers does not.
        trust_remote_code: whether that code may run.
        attn_implementation: transformers' name of an attention kernel; None: its own choice.
        tokenizer: one that is not the checkpoint's.

    Raises ValueError if the blocks are not found, if the checkpoint lacks their weights, if the context leaves no room
    for text, if `dtype` is none of these types, or if the model needs remote code that is not allowed or not pinned.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.loader.dtype={dtype} is not known: use float32, bfloat16, float16 or null")
    code = permitted_code(checkpoint, revision, code, trust_remote_code)
    if code is None:
        module, missing = _load_own(checkpoint, revision, dtype, attn_implementation)
    else:
        module, missing = load_foreign(checkpoint, revision, code), []
    path = blocks_path(module, blocks)
    _refuse_random_weights(checkpoint, path, missing)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(checkpoint, **at(revision, code))
    windows = Windows(tokenizer, *around(tokenizer, bos), context, shortest)
    return Backbone(ready(module, dtype), block_list(module, path), windows.items, windows.collate)


@cache
def count_blocks(
    checkpoint: str,
    blocks: str | None = None,
    revision: str | None = None,
    code: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """The number of a checkpoint's blocks, from its configuration alone. Arguments and errors: as of `load`."""
    code = permitted_code(checkpoint, revision, code, trust_remote_code)
    with torch.device("meta"):
        module = construct(checkpoint, revision, code)
    return len(block_list(module, blocks_path(module, blocks)))


def ready(module: nn.Module, dtype: str | None) -> nn.Module:
    """`module` for one forward pass after another: in eval mode, cast, and keeping no keys and values."""
    config: Any = module.config
    if getattr(config, "use_cache", False):
        config.use_cache = False
    return (module if dtype is None else module.to(getattr(torch, dtype))).eval()


def _load_own(
    checkpoint: str | Path, revision: str | None, dtype: str | None, attn_implementation: str | None
) -> tuple[nn.Module, Iterable[str]]:
    """A model that transformers itself knows, and the names of weights that its checkpoint lacks."""
    options: dict[str, Any] = at(revision)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    with _quiet():  # torch_dtype: transformers 5 calls it dtype and takes both, 4.48 only this one
        module, found = AutoModel.from_pretrained(
            checkpoint, output_loading_info=True, torch_dtype=dtype or "auto", **options
        )
    return module, found["missing_keys"]


def _refuse_random_weights(checkpoint: str | Path, blocks: str, missing: Iterable[str]) -> None:
    """Raise ValueError if embeddings or blocks are not the checkpoint's; what follows may be missing."""
    # transformers 4 names them with the prefix that they have in a model with a head
    random = sorted(name for name in missing if f".{blocks}." in f".{name}" or "embed" in name)
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
