"""ProGen2 as a CodeGen model, with its weights converted to transformers' layout and without remote code.

The hub ports of ProGen2 contain Python code that transformers 5 cannot run. Salesforce's CodeGen is the same network
(rotary attention and MLP in parallel on one LayerNorm), except for the order of the rows in `qkv_proj`: both were
partitioned for TPU cores, ProGen2 into eight parts of query, value and key, and CodeGen into four.
Layout: modeling_progen.py of github.com/hugohrban/ProGen2-finetuning, modeling_codegen.py of transformers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CodeGenConfig, CodeGenModel, PreTrainedTokenizerFast

from sae_outliers.models.backbone import Backbone
from sae_outliers.models.transformers.auto import prepare_for_inference
from sae_outliers.models.transformers.safetensors_files import checkpoint_folder, fill, stored_tensors
from sae_outliers.models.windows import TokenWindows

PROGEN_PARTS, CODEGEN_PARTS = 8, 4
HEAD_AND_MASKS = ("lm_head", ".attn.bias", ".attn.masked_bias")
SHARED_KEYS = ("n_layer", "n_head", "rotary_dim", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon")


def load(
    checkpoint: str | Path,
    *,
    context: int,
    start: str = "1",
    shortest: int = 16,
    revision: str | None = None,
) -> Backbone:
    """Return ProGen2 without its head, in float32 and eval mode; a document is a protein in one-letter residues.

    Args:
        checkpoint: a hub id or a local folder, with config.json, tokenizer.json and safetensors.
        context: positions in a window, including `start`.
        start: the token before every window; 1 means that the sequence runs from the N- to the C-terminus.
        shortest: windows with fewer residues are skipped.
        revision: commit of the hub repository.

    Raise ValueError if config.json is not ProGen2's or a weight is missing, FileNotFoundError without safetensors.
    """
    folder = checkpoint_folder(checkpoint, revision)
    module = CodeGenModel(codegen_config(folder / "config.json"))
    fill(module, map(codegen_tensors, stored_tensors(folder)), checkpoint)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    windows = TokenWindows(tokenizer, tuple(tokenizer(start)["input_ids"]), (), context, shortest)
    return Backbone(prepare_for_inference(module, "float32"), list(module.h), windows.items, windows.collate)


def codegen_config(path: Path) -> CodeGenConfig:
    """Return CodeGen's configuration of the same network. Raise ValueError if the file is not ProGen2's."""
    entries: dict[str, Any] = json.loads(path.read_text())
    lacking = {"embed_dim", "vocab_size_emb", *SHARED_KEYS} - entries.keys()
    if lacking:
        raise ValueError(f"{path} is not a ProGen2 configuration: it lacks {', '.join(sorted(lacking))}")
    shared = {name: entries[name] for name in SHARED_KEYS}
    return CodeGenConfig(
        n_embd=entries["embed_dim"],
        vocab_size=entries["vocab_size_emb"],
        bos_token_id=None,  # CodeGen's default ids are outside this vocabulary
        eos_token_id=None,
        **shared,
    )


def codegen_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ProGen2's tensors with CodeGen's names and row order, without the head and the stored causal masks."""

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            if not any(part in name for part in HEAD_AND_MASKS):
                yield name.removeprefix("transformer."), reordered(tensor) if "qkv_proj" in name else tensor

    return dict(renamed())


def reordered(qkv: Tensor) -> Tensor:
    """Return ProGen2's `qkv_proj` [3 · d_model, d_model] with its rows in CodeGen's order."""
    d_model = qkv.shape[1]
    # first from ProGen2's parts to contiguous query, value and key, then into CodeGen's parts
    contiguous = (
        qkv.view(PROGEN_PARTS, 3, d_model // PROGEN_PARTS, d_model).transpose(0, 1).reshape(3, d_model, d_model)
    )
    return contiguous.view(3, CODEGEN_PARTS, d_model // CODEGEN_PARTS, d_model).transpose(0, 1).reshape(qkv.shape)
