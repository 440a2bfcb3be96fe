"""Vision models by way of timm: the tokens of ViTs are patches, those of conv nets grid cells."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch, first_output

# where timm's models keep their blocks: ViTs and MobileNets, ConvNeXts, Swins, ResNets, RegNets
PLACES = (("blocks",), ("stages",), ("layers",), ("layer1", "layer2", "layer3", "layer4"), ("s1", "s2", "s3", "s4"))


def load(
    architecture: str,
    weights: Path | str | None = None,
    blocks: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> Backbone:
    """A pretrained timm model, in eval mode and float32; an item is one image, resized and normalised for it.

    Args:
        architecture: timm's name, with its tag where there are several sets of weights.
        weights: a file in timm's naming instead of timm's own download; it takes the same way through timm.
        blocks: dotted path of the part that holds the blocks; None to look in timm's usual places. Stages count as
            their blocks.
        revision: the commit of the hub repository from which timm takes the weights; None for its newest.
        options: further arguments of `timm.create_model`, such as `img_size` in pixels.

    Raises:
        RuntimeError: the file does not hold exactly the model's tensors.
        ValueError: timm has no such model, the model has no blocks there, or does not say where its patches are.
    """
    module: Any = pretrained(architecture, weights, revision, **options)
    # timm loads strictly only as long as the model has the checkpoint's classifier, hence it goes afterwards
    module.reset_classifier(0)
    module = module.eval().float()
    # `img_size` is what the model was made for; its configuration still names the size it was trained at
    transform = create_transform(**resolve_model_data_config(module, args=options), is_training=False)
    special = _special_positions(module)

    def items(image: Image.Image) -> list[Tensor]:
        return [transform(image.convert("RGB"))]

    def collate(pixels: list[Tensor]) -> Batch:
        return Batch({"x": torch.stack(pixels)}, special=None if special is None else special.expand(len(pixels), -1))

    layout = getattr(module, "output_fmt", "NCHW")
    return Backbone(module, find_blocks(module, blocks), items, collate, partial(hidden, layout=layout))


def pretrained(
    architecture: str, weights: Path | str | None = None, revision: str | None = None, **options: Any
) -> nn.Module:
    """timm's model with its classifier, if its weights have one."""
    overlay = {"file": str(weights)} if weights else {}
    if revision and (known := timm.get_pretrained_cfg(architecture)):
        overlay = {"hf_hub_id": f"{known.hf_hub_id}@{revision}"}
    return _created(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def count_blocks(architecture: str, blocks: str | None = None, **options: Any) -> int:
    """The number of blocks of a timm model, whose weights are neither read nor made. Raises ValueError as `load`."""
    with torch.device("meta"):
        return len(find_blocks(_created(architecture, pretrained=False, **options), blocks))


def _created(architecture: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(architecture, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r}: see timm.list_models()") from error


def find_blocks(module: nn.Module, path: str | None = None) -> Sequence[nn.Module]:
    """The blocks at `path`, or at the first of timm's usual places. Raises ValueError if there is nothing there."""
    parts = dict(module.named_modules())
    for place in PLACES if path is None else ((path,),):
        if all(part in parts for part in place):
            return [block for part in place for block in flat_blocks(parts[part])]
    raise ValueError(
        f"{type(module).__name__} has no part {path or PLACES[0][0]!r}: name the one that holds its blocks by "
        f"model.loader.blocks=; its parts are {', '.join(name for name, _ in module.named_children())}"
    )


def flat_blocks(blocks: nn.Module) -> Sequence[nn.Module]:
    """The blocks in the order of the forward pass, those of a stage one by one."""
    stages = (getattr(child, "blocks", child) for child in blocks.children())  # timm's stages name theirs `blocks`
    return [block for stage in stages for block in (stage if isinstance(stage, nn.Sequential) else [stage])]


def hidden(output: Any, layout: str = "NCHW") -> Tensor:
    """A block's output as [items, positions, d_model]; a grid of that layout row by row."""
    states = first_output(output)
    if states.ndim != 4:
        return states
    return states.flatten(1, 2) if layout == "NHWC" else states.flatten(2).transpose(1, 2)


def _special_positions(module: Any) -> Tensor | None:
    """bool [positions], True at CLS and the registers, which stand before the patches; None where there are none."""
    n_special = getattr(module, "num_prefix_tokens", 0)
    if not n_special:
        return None
    n_patches = getattr(getattr(module, "patch_embed", None), "num_patches", None)
    if n_patches is None:
        raise ValueError(f"{type(module).__name__} does not say how many patches an image has: it cannot be used here")
    return torch.arange(n_special + n_patches) < n_special
