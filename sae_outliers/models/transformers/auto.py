"""Load checkpoints of transformers models, from the hub or a local folder, as backbones."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from sae_outliers.models.backbone import Backbone, first_output
from sae_outliers.models.blocks import block_list, blocks_path, part_that_runs
from sae_outliers.models.transformers.inputs import grid_or_rows, image_inputs, sound_inputs
from sae_outliers.models.transformers.remote_code import (
    construct,
    load_remote_code_model,
    permitted_code,
    revision_kwargs,
)
from sae_outliers.models.windows import TokenWindows, largest_id, special_tokens_around, wants_spaces

log = logging.getLogger(__name__)

# by which configurations of transformers tell of rotary positions, in its version 4 or 5
ROTARY = ("rope_theta", "rope_parameters", "rope_scaling")
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
    for text or is more than the network has positions, if `dtype` is unknown, or if the model needs remote code that is
    not allowed or not pinned.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.loader.dtype={dtype} is not known: use float32, bfloat16, float16 or null")
    refuse_adapters(checkpoint)
    code = permitted_code(checkpoint, revision, code, trust_remote_code)
    if code is None:
        module, missing = _load_native(checkpoint, revision, dtype, attn_implementation)
    else:
        module, missing = load_remote_code_model(checkpoint, revision, code), []
    path = blocks_path(module, blocks)
    _refuse_random_weights(checkpoint, path, missing)
    network: Any = part_that_runs(prepare_for_inference(module, dtype), path)
    listed = block_list(module, path)
    options = revision_kwargs(revision, code)
    reads = "input_ids" if tokenizer is not None else getattr(network, "main_input_name", "input_ids")
    if reads == "pixel_values":
        return Backbone(network, listed, *image_inputs(checkpoint, network, listed[0], options), hidden=grid_or_rows)
    if reads in ("input_features", "input_values"):
        return Backbone(network, listed, *sound_inputs(checkpoint, network, options))
    tokenizer = tokenizer or _tokenizer(checkpoint, options)
    refuse_more_than_it_has(checkpoint, network, tokenizer, context)
    windows = TokenWindows(tokenizer, *special_tokens_around(tokenizer, bos), context, shortest)
    swapped = getattr(network.config, "model_type", None) == "xlnet"
    hidden = _positions_first if swapped else first_output
    items = _with_spaces(windows) if wants_spaces(tokenizer) else windows.items
    return Backbone(network, listed, items, windows.collate, hidden)


@cache
def count_blocks(
    checkpoint: str,
    blocks: str | None = None,
    revision: str | None = None,
    code: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Return the number of blocks of a checkpoint from its configuration alone. Arguments and errors: see `load`."""
    refuse_adapters(checkpoint)
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


def refuse_adapters(checkpoint: str | Path) -> None:
    """Raise ValueError for a folder with a PEFT adapter, which would be ignored and the base measured."""
    if (Path(checkpoint) / "adapter_config.json").is_file():
        raise ValueError(
            f"{checkpoint} holds a PEFT adapter (adapter_config.json), and measuring the base model would ignore it: "
            'merge it with `AutoPeftModelForCausalLM.from_pretrained("<folder>").merge_and_unload()'
            '.save_pretrained("<new folder>")`, save the tokenizer there too, and name that folder; or remove '
            "adapter_config.json to measure the base"
        )


def refuse_more_than_it_has(checkpoint: str | Path, network: nn.Module, tokenizer: Any, context: int) -> None:
    """Raise ValueError for a context or a tokenizer that is larger than the network's embeddings (both numbers).

    Positions that are computed, as rotary ones are, have no end: of a context beyond those of training a warning tells.
    """
    positions = _positions(network)
    if positions is not None and context > positions:
        sentence = (
            f"context={context} is more than the {positions} positions that {checkpoint} was made for "
            f"(max_position_embeddings): set model.loader.context={positions} or less"
        )
        if not _is_rotary(network):
            raise ValueError(sentence)
        log.warning("%s, unless you want to see it beyond them", sentence)
    largest, vocabulary = largest_id(tokenizer), _vocabulary(network)
    if vocabulary is not None and largest is not None and largest >= vocabulary:
        raise ValueError(
            f"the tokenizer of {checkpoint} has ids up to {largest}, but the model has embeddings for {vocabulary}: "
            "they do not belong together; put the model's own tokenizer into the folder"
        )


def _positions(network: Any) -> int | None:
    """Return how many positions the network has; None if it does not say."""
    limit = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, part in network.named_modules():
        # RoBERTa's positions are counted from the one after the padding's
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return min(limit, part.num_embeddings - part.padding_idx - 1)
    return limit


def _is_rotary(network: Any) -> bool:
    """Return whether positions are computed; a table of learned ones has an end, whatever the configuration says."""
    learned = any("position" in name and isinstance(part, nn.Embedding) for name, part in network.named_modules())
    return not learned and any(getattr(network.config, name, None) is not None for name in ROTARY)


def _vocabulary(network: Any) -> int | None:
    try:
        size = getattr(network.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None
    return size if isinstance(size, int) else None


def _tokenizer(checkpoint: str | Path, options: dict[str, Any]) -> Any:
    """Return the checkpoint's tokenizer. Raise ValueError, with the remedy, if a local folder holds none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        if not Path(checkpoint).is_dir():
            raise
        raise ValueError(
            f"{checkpoint} holds no tokenizer that can be read (tokenizer.json and tokenizer_config.json): save that "
            "of the model into the folder, with AutoTokenizer.from_pretrained(<its origin>).save_pretrained(<folder>). "
            f"transformers says: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    if hasattr(tokenizer, "all_special_ids") and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"{checkpoint} holds no tokenizer: it has special tokens only; save that of the model into the folder, "
            "with AutoTokenizer.from_pretrained(<its origin>).save_pretrained(<folder>)"
        )
    return tokenizer


def _with_spaces(windows: TokenWindows) -> Callable[[Any], Iterator[list[int]]]:
    """Return the windows' `items`, for documents whose residues stand without spaces."""

    def items(document: Any) -> Iterator[list[int]]:
        return windows.items(" ".join(document.replace(" ", "")) if isinstance(document, str) else document)

    return items


def _positions_first(output: Any) -> Tensor:
    """Return XLNet's states, [positions, items, d_model], as [items, positions, d_model]."""
    return first_output(output).transpose(0, 1)


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
