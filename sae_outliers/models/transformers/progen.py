"""ProGen2, as the CodeGen model that it is: its weights are put in transformers' order, and no remote code runs.

The hub ports of ProGen2 bring Python code that transformers 5 no longer runs. Salesforce's CodeGen is the same network
(rotary attention and MLP side by side on one LayerNorm), but for the order of the rows in `qkv_proj`: both were cut for
TPU cores, ProGen2 in eight parts of query, value and key, CodeGen in four.
Layout: modeling_progen.py of github.com/hugohrban/ProGen2-finetuning, modeling_codegen.py of transformers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CodeGenConfig, CodeGenModel, PreTrainedTokenizerFast

from sae_outliers.models.backbone import Backbone
from sae_outliers.models.transformers.auto import ready
from sae_outliers.models.transformers.safetensors_files import checkpoint_folder, fill, stored_tensors
from sae_outliers.models.windows import Windows

PROGEN_PARTS, CODEGEN_PARTS = 8, 4
HEAD_AND_MASKS = ("lm_head", ".attn.bias", ".attn.masked_bias")
SAME = ("n_layer", "n_head", "rotary_dim", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon")


def load(
    checkpoint: str | Path,
    *,
    context: int,
    start: str = "1",
    shortest: int = 16,
    revision: str | None = None,
) -> Backbone:
    """ProGen2 without its head, in float32 and eval mode; a document is a protein in one-letter residues.

    Args:
        checkpoint: a hub id or a local folder, with config.json, tokenizer.json and safetensors.
        context: positions in a window, `start` included.
        start: the token in front of every window: 1, for sequences are written from the N- to the C-terminus.
        shortest: windows with fewer residues than this are left out.
        revision: commit of the hub repository.

    Raises ValueError if config.json is not ProGen2's or a weight is missing, FileNotFoundError without safetensors.
    """
    folder = checkpoint_folder(checkpoint, revision)
    module = CodeGenModel(codegen_config(folder / "config.json"))
    fill(module, map(codegen_tensors, stored_tensors(folder)), checkpoint)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    windows = Windows(tokenizer, tuple(tokenizer(start)["input_ids"]), (), context, shortest)
    return Backbone(ready(module, "float32"), list(module.h), windows.items, windows.collate)


def codegen_config(path: Path) -> CodeGenConfig:
    """CodeGen's configuration of the same network. Raises ValueError if the file is not ProGen2's."""
    entries: dict[str, Any] = json.loads(path.read_text())
    lacking = {"embed_dim", "vocab_size_emb", *SAME} - entries.keys()
    if lacking:
        raise ValueError(f"{path} is no ProGen2 configuration: it has no {', '.join(sorted(lacking))}")
    shared = {name: entries[name] for name in SAME}
    return CodeGenConfig(
        n_embd=entries["embed_dim"],
        vocab_size=entries["vocab_size_emb"],
        bos_token_id=None,  # CodeGen's own lie outside this vocabulary
        eos_token_id=None,
        **shared,
    )


def codegen_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ProGen2's tensors by CodeGen's names, in its order, and without the head and the stored causal masks."""

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            if not any(part in name for part in HEAD_AND_MASKS):
                yield name.removeprefix("transformer."), reordered(tensor) if "qkv_proj" in name else tensor

    return dict(renamed())


def reordered(qkv: Tensor) -> Tensor:
    """The rows of ProGen2's `qkv_proj` [3 · d_model, d_model] in CodeGen's order; heads keep theirs."""
    d_model = qkv.shape[1]
    whole = qkv.view(PROGEN_PARTS, 3, d_model // PROGEN_PARTS, d_model).transpose(0, 1).reshape(3, d_model, d_model)
    return whole.view(3, CODEGEN_PARTS, d_model // CODEGEN_PARTS, d_model).transpose(0, 1).reshape(qkv.shape)
