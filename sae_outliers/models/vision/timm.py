"""Load vision models through timm: the tokens are patches in ViTs and grid cells in convolutional networks."""

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
BLOCK_PATHS = (
    ("blocks",),
    ("stages",),
    ("layers",),
    ("layer1", "layer2", "layer3", "layer4"),
    ("s1", "s2", "s3", "s4"),
)
# parts of CaiT and XCiT that add CLS after the blocks
CLASS_ATTENTION = ("blocks_token_only", "cls_attn_blocks")


def load(
    architecture: str,
    weights: Path | str | None = None,
    blocks: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> Backbone:
    """Return a pretrained timm model in eval mode and float32; an item is one image, resized and normalised.

    Args:
        architecture: timm's name, with a tag if there are several sets of weights.
        weights: a file with timm's names, which timm loads instead of its own download.
        blocks: dotted path of the module that holds the blocks; None: where timm's models usually keep them. The
            blocks of stages are counted individually.
        revision: commit of the hub repository from which timm takes the weights; None: the latest.
        options: further arguments of `timm.create_model`, such as `img_size` in pixels.

    Raises:
        RuntimeError: the tensors in the file are not exactly the model's.
        ValueError: timm has no such model, or the model has no blocks there or an unknown number of patches.
    """
    module: Any = pretrained(architecture, weights, revision, **options)
    # removed only now, because timm checks the weights strictly only if the model has the checkpoint's classifier
    module.reset_classifier(0)
    module = module.eval().float()
    # pass the options as well, because the model's configuration names the size of training even if `img_size` differs
    transform = create_transform(**resolve_model_data_config(module, args=options), is_training=False)
    special = special_positions(module)

    def items(image: Image.Image) -> list[Tensor]:
        return [transform(image.convert("RGB"))]

    def collate(pixels: list[Tensor]) -> Batch:
        return Batch({"x": torch.stack(pixels)}, special=None if special is None else special.expand(len(pixels), -1))

    layout = getattr(module, "output_fmt", "NCHW")
    grids = partial(hidden, layout=layout, widths=stage_widths(module))
    return Backbone(module, find_blocks(module, blocks), items, collate, grids)


def pretrained(
    architecture: str, weights: Path | str | None = None, revision: str | None = None, **options: Any
) -> nn.Module:
    """Return timm's model, with a classifier if the weights have one."""
    overlay = {"file": str(weights)} if weights else {}
    if revision and (known := timm.get_pretrained_cfg(architecture)):
        overlay = {"hf_hub_id": f"{known.hf_hub_id}@{revision}"}
    return _create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def count_blocks(architecture: str, blocks: str | None = None, **options: Any) -> int:
    """Return a timm model's number of blocks without allocating its weights. Raise ValueError as `load` does."""
    with torch.device("meta"):
        return len(find_blocks(_create_model(architecture, pretrained=False, **options), blocks))


def _create_model(architecture: str, **options: Any) -> nn.Module:
    try:
        return timm.create_model(architecture, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r}: see timm.list_models()") from error


def find_blocks(module: nn.Module, path: str | None = None) -> Sequence[nn.Module]:
    """Return the blocks at `path`, or at the first of timm's usual paths, or the stages that `feature_info` names.

    Raise ValueError if there are none.
    """
    parts = dict(module.named_modules())
    for paths in BLOCK_PATHS if path is None else ((path,),):
        if all(part in parts for part in paths):
            return [block for part in paths for block in flat_blocks(parts[part])]
    stages = [parts[name] for name in _stage_names(module) if name in parts]
    if path is None and stages:
        return stages
    raise ValueError(
        f"{type(module).__name__} has no part {path or BLOCK_PATHS[0][0]!r}: name the one that holds its blocks by "
        f"model.loader.blocks=; its parts are {', '.join(name for name, _ in module.named_children())}"
    )


def _stage_names(module: Any) -> list[str]:
    """Return the modules whose outputs timm calls the features of the stages, each once and in order."""
    known = getattr(module, "feature_info", None)
    described = [stage for stage in known or () if isinstance(stage, dict)]
    return list(dict.fromkeys(stage["module"] for stage in described if stage.get("module")))


def stage_widths(module: Any) -> frozenset[int]:
    """Return the widths that timm declares of the features of the stages."""
    return frozenset(stage["num_chs"] for stage in getattr(module, "feature_info", None) or () if "num_chs" in stage)


def flat_blocks(blocks: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks in the order of the forward pass, with stages replaced by their blocks."""
    # timm's stage classes have an attribute `blocks`; in ResNets and RegNets a stage is a plain Sequential
    stages = (getattr(child, "blocks", child) for child in blocks.children())
    return [block for stage in stages for block in (stage.children() if _is_stage(stage) else [stage])]


def _is_stage(part: nn.Module) -> bool:
    """Return True for a sequence of blocks; ConvMixer's blocks are sequences too, of single layers among others."""
    return isinstance(part, nn.Sequential | nn.ModuleList) and all(
        any(True for _ in block.children()) for block in part.children()
    )


def hidden(output: Any, layout: str = "NCHW", widths: frozenset[int] = frozenset()) -> Tensor:
    """Return a block's output as [items, positions, d_model]; a grid in `layout` becomes its cells, row by row.

    Some blocks have the channels last without saying so: there the last extent is one of `widths`, and no other is.
    """
    states = first_output(output)
    if not isinstance(states, Tensor) or states.ndim != 4:
        return states  # what is no tensor is refused by name when the first batch is checked
    _, first, second, last = states.shape
    says_last = first == second != last and last in widths and first not in widths
    return states.flatten(1, 2) if layout == "NHWC" or says_last else states.flatten(2).transpose(1, 2)


def special_positions(module: Any) -> Tensor | None:
    """Return bool [positions], True at CLS and register tokens, which precede the patches; None if there are none."""
    n_special = getattr(module, "num_prefix_tokens", 0)
    if not n_special or any(hasattr(module, part) for part in CLASS_ATTENTION):
        return None
    n_patches = getattr(getattr(module, "patch_embed", None), "num_patches", None)
    if n_patches is None:
        raise ValueError(f"{type(module).__name__} does not say how many patches an image has: it cannot be used here")
    return torch.arange(n_special + n_patches) < n_special
