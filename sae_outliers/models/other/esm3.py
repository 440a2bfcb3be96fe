"""ESM3 by way of EvolutionaryScale's package `esm`, from its sequence track alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.windows import Windows, around
from sae_outliers.utils.package_cache import install_command

WEIGHTS = "data/weights/esm3_sm_open_v1.pth"  # the path in the hub's repository, which holds other networks as well
HEAD = 64  # width of an attention head in every ESM3: the one size that cannot be read off the weights


def load(checkpoint: str | Path, context: int, revision: str | None = None, shortest: int = 16) -> Backbone:
    """ESM3 in float32 and eval mode; a document is a protein in one-letter residues.

    The other tracks (structure, function and so on) are those that the package puts where nothing is known.

    Args:
        checkpoint: a hub id, or a folder laid out like it.
        context: positions in a window, BOS and EOS included.
        revision: commit of the hub repository.
        shortest: windows with fewer residues than this are left out.

    Raises:
        FileNotFoundError: the weights are not there, or the hub refuses them.
        ModuleNotFoundError: esm is not installed.
        RuntimeError: the file does not hold exactly an ESM3's weights.
        ValueError: the context has no room for so many residues.
    """
    tokenizer, module = _network(_weights(checkpoint, revision))
    windows = Windows(tokenizer, *around(tokenizer, bos=True), context, shortest)

    def collate(items: list[list[int]]) -> Batch:
        batch = windows.collate(items)
        # positions attend to those of the same id: residues to residues, padding to padding
        inputs = {"sequence_tokens": batch.inputs["input_ids"], "sequence_id": batch.inputs["attention_mask"]}
        return Batch(inputs, batch.mask, batch.special)

    return Backbone(module, list(module.transformer.blocks), windows.items, collate)


class NoFrames(nn.Module):
    """What ESM3's geometric attention gives without coordinates: nothing, as it sets positions without a frame to 0.

    It would first compute distances between all positions in 256 heads: 3 GB for a protein of 1,000 residues.
    """

    def forward(self, states: Tensor, *_frames: Any) -> Tensor:
        return torch.zeros_like(states)


def _network(weights: dict[str, Tensor]) -> tuple[Any, Any]:
    """The tokenizer, and the network of those weights, of whichever size they are."""
    try:
        from esm.models.esm3 import ESM3
        from esm.tokenization import EsmSequenceTokenizer
    except ImportError as error:
        raise ModuleNotFoundError(f"esm cannot be imported ({error}): run `{install_command('esm')}`") from error
    tokenizer = EsmSequenceTokenizer()
    d_model = weights["encoder.sequence_embed.weight"].shape[1]
    module = ESM3(
        d_model=d_model,
        n_heads=d_model // HEAD,
        v_heads=len(weights["transformer.blocks.0.geom_attn.distance_scale_per_head"]),
        n_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.blocks.")),
        # networks and tokenizers of the other tracks, which a forward pass on a sequence does not ask for
        structure_encoder_fn=None,
        structure_decoder_fn=None,
        function_decoder_fn=None,
        tokenizers=SimpleNamespace(sequence=tokenizer),
    )
    module.load_state_dict(weights)
    module.transformer.blocks[0].geom_attn = NoFrames()
    return tokenizer, module.float().eval()


def _weights(checkpoint: str | Path, revision: str | None) -> dict[str, Tensor]:
    local = Path(checkpoint).expanduser()
    file = local / WEIGHTS if local.is_dir() else _downloaded(str(checkpoint), revision)
    if not file.is_file():
        raise FileNotFoundError(f"{local} holds no {WEIGHTS}: give a copy of the hub's repository")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _downloaded(checkpoint: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, WEIGHTS, revision=revision))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{checkpoint} could not be loaded. If the hub gives it out on request only, accept the licence at "
            f"https://huggingface.co/{checkpoint}, log in with `hf auth login`, and try again; or give a folder with a "
            f"copy as model.loader.checkpoint=. The hub says: {str(error).strip().splitlines()[0]}"
        ) from error
