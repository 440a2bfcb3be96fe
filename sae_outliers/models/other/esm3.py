"""ESM3 through EvolutionaryScale's package `esm`, with sequences as its only input."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.hub_access import not_loaded
from sae_outliers.models.windows import TokenWindows, special_tokens_around
from sae_outliers.utils.package_cache import install_command

WEIGHTS_FILE = "data/weights/esm3_sm_open_v1.pth"  # the hub repository contains other networks as well
HEAD_WIDTH = 64  # of an attention head in every ESM3: the one size that the weights do not reveal


def load(checkpoint: str | Path, context: int, revision: str | None = None, shortest: int = 16) -> Backbone:
    """Return ESM3 in float32 and eval mode; a document is a protein in one-letter residues.

    The other tracks (structure, function and so on) have the package's defaults for unknown values.

    Args:
        checkpoint: a hub id, or a folder with the same layout.
        context: positions in a window, including BOS and EOS.
        revision: commit of the hub repository.
        shortest: windows with fewer residues are skipped.

    Raises:
        FileNotFoundError: the weights do not exist, or the hub denies access to them.
        ModuleNotFoundError: esm is not installed.
        RuntimeError: the weights in the file are not exactly those of an ESM3.
        ValueError: the context has no room for `shortest` residues.
    """
    tokenizer, module = _network(_weights(checkpoint, revision))
    windows = TokenWindows(tokenizer, *special_tokens_around(tokenizer, bos=True), context, shortest)

    def collate(items: list[list[int]]) -> Batch:
        batch = windows.collate(items)
        # positions attend only to those with the same sequence id: residues to residues, padding to padding
        inputs = {"sequence_tokens": batch.inputs["input_ids"], "sequence_id": batch.inputs["attention_mask"]}
        return Batch(inputs, batch.mask, batch.special)

    return Backbone(module, list(module.transformer.blocks), windows.items, collate)


class NoFrames(nn.Module):
    """A stand-in for ESM3's geometric attention, whose output is zero at positions without coordinates.

    The original would first compute distances between all positions in 256 heads: 3 GB for 1,000 residues.
    """

    def forward(self, states: Tensor, *_frames: Any) -> Tensor:
        return torch.zeros_like(states)


def _network(weights: dict[str, Tensor]) -> tuple[Any, Any]:
    """Return the tokenizer and the network; the sizes of the network are inferred from the weights."""
    try:
        from esm.models.esm3 import ESM3
        from esm.tokenization import EsmSequenceTokenizer
    except ImportError as error:
        raise ModuleNotFoundError(f"esm cannot be imported ({error}): run `{install_command('esm')}`") from error
    tokenizer = EsmSequenceTokenizer()
    d_model = weights["encoder.sequence_embed.weight"].shape[1]
    module = ESM3(
        d_model=d_model,
        n_heads=d_model // HEAD_WIDTH,
        v_heads=len(weights["transformer.blocks.0.geom_attn.distance_scale_per_head"]),
        n_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.blocks.")),
        # networks and tokenizers of the other tracks, which a forward pass on a sequence does not use
        structure_encoder_fn=None,
        structure_decoder_fn=None,
        function_decoder_fn=None,
        tokenizers=SimpleNamespace(sequence=tokenizer),
    )
    module.load_state_dict(weights)
    module.transformer.blocks[0].geom_attn = NoFrames()  # the only block with geometric attention
    return tokenizer, module.float().eval()


def _weights(checkpoint: str | Path, revision: str | None) -> dict[str, Tensor]:
    local = Path(checkpoint).expanduser()
    file = local / WEIGHTS_FILE if local.is_dir() else _download(str(checkpoint), revision)
    if not file.is_file():
        raise FileNotFoundError(f"{local} contains no {WEIGHTS_FILE}: give a copy of the hub's repository")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _download(checkpoint: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, WEIGHTS_FILE, revision=revision))
    except (OSError, ValueError) as error:
        raise not_loaded(checkpoint, "The hub", error) from error
