"""Vision models by way of timm: the tokens of ViTs are patches, those of conv nets grid cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch, first_output


def load(architecture: str, weights: Path | str | None = None, blocks: str = "blocks", **options: Any) -> Backbone:
    """A pretrained timm model, in eval mode and float32; an item is one image, resized and normalised for it.

    Args:
        architecture: timm's name, with its tag where there are several sets of weights.
        weights: a file in timm's naming instead of timm's own download; it takes the same way through timm.
        blocks: where the model keeps its blocks; stages that are sequences count as their members.
        options: further arguments of `timm.create_model`, such as `img_size` in pixels.

    Raises RuntimeError if the file does not hold exactly the model's tensors.
    """
    module: Any = pretrained(architecture, weights, **options)
    # timm loads strictly only as long as the model has the checkpoint's classifier, hence it goes afterwards
    module.reset_classifier(0)
    module = module.eval().float()
    # `img_size` is what the model was made for; its configuration still names the size it was trained at
    transform = create_transform(**resolve_model_data_config(module, args=options), is_training=False)

    def items(image: Image.Image) -> list[Tensor]:
        return [transform(image.convert("RGB"))]

    def collate(pixels: list[Tensor]) -> Batch:
        return Batch({"x": torch.stack(pixels)}, special=_special_positions(module, len(pixels)))

    return Backbone(module, flat_blocks(module.get_submodule(blocks)), items, collate, hidden)


def pretrained(architecture: str, weights: Path | str | None = None, **options: Any) -> nn.Module:
    """timm's model with its classifier, if its weights have one."""
    overlay = {"file": str(weights)} if weights else {}
    return timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def flat_blocks(blocks: nn.Module) -> Sequence[nn.Module]:
    """The blocks in the order of the forward pass, those of a stage one by one."""
    return [block for child in blocks.children() for block in (child if isinstance(child, nn.Sequential) else [child])]


def hidden(output: Any) -> Tensor:
    """A block's output as [items, positions, d_model]; a grid [items, d_model, rows, columns] row by row."""
    states = first_output(output)
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def _special_positions(module: Any, n_items: int) -> Tensor | None:
    """True at CLS and the registers, which stand before the patches; None for a model without either."""
    n_special = getattr(module, "num_prefix_tokens", 0)
    if not n_special:
        return None
    position = torch.arange(n_special + module.patch_embed.num_patches)
    return (position < n_special).expand(n_items, -1)
