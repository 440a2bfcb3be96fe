"""Find the list of blocks inside a transformers model, and the part of the model that runs them by itself."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

log = logging.getLogger(__name__)

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "depth")  # names of the block count in configurations
# parts of a model that are looked into where the whole has several lists: what reads text, then an encoder
PARTS = ("language_model", "text_model", "text_encoder_model", "thinker", "model", "encoder")

NO_BLOCKS = ("embed", "merger", "head", "neck", "subsampling", "convs", "quantiz")  # in paths of other lists


def blocks_path(module: nn.Module, path: str | None = None) -> str:
    """Return the dotted path of the ModuleList that holds the blocks: `path` if given, otherwise the one that fits.

    A list fits if its members have submodules and its length is the depth in the configuration, or if it is the only
    such list. Of several, the one in the part that reads text, or else in the encoder, is taken, and the choice logged.

    Raise ValueError, listing the model's ModuleLists, if there is none at `path`, or none or several fit.
    """
    lists = _outer_lists(module)
    found = ", ".join(f"{name} ({len(part)})" for name, part in lists.items()) or "no list at all"
    if path is not None:
        try:
            if isinstance(module.get_submodule(path), nn.ModuleList):
                return path
        except AttributeError:
            pass
        raise ValueError(f"{type(module).__name__} has no list of blocks {path!r}; it has {found}")
    chosen = _fitting(module)
    if chosen is None:
        raise ValueError(
            f"cannot tell which ModuleList of {type(module).__name__} holds the blocks: name it with "
            f"model.loader.blocks=; the model has {found}"
        )
    if len([name for name, part in lists.items() if _holds_blocks(part)]) > 1:
        log.info("%s: its blocks are taken to be %s; model.loader.blocks= names others: it has %s",
                 type(module).__name__, chosen, found)  # fmt: skip
    return chosen


def block_list(module: nn.Module, path: str) -> list[nn.Module]:
    """Return the blocks in the ModuleList at `path`: those of stages one by one, shared ones as often as they run."""
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    config: Any = getattr(module, "config", None)
    if len(blocks) == getattr(config, "num_hidden_groups", None):  # ALBERT's
        depth = config.num_hidden_layers
        return [blocks[i * len(blocks) // depth] for i in range(depth)]
    return [inner for block in blocks for inner in _of_stage(block)]


def part_that_runs(module: nn.Module, path: str) -> nn.Module:
    """Return the part of the model that runs the blocks at `path` by itself, or the model if it has one list of them.

    Raise ValueError if the blocks are a decoder's that needs an encoder.
    """
    from transformers import PreTrainedModel

    name, _, rest = path.partition(".")
    holding = [child for child, part in module.named_children() if any(map(_holds_blocks, _outer_lists(part).values()))]
    if len(holding) < 2 and name != "model":
        return module
    if name == "decoder" and "encoder" in holding:
        raise ValueError(
            f"the blocks {path} of {type(module).__name__} read what its encoder gives, and a text shifted by one: "
            "their tokens cannot be told from those; model.loader.blocks= names the encoder's instead"
        )
    part = module.get_submodule(name)
    if len(holding) >= 2 and not isinstance(part, PreTrainedModel):
        return module
    return part_that_runs(part, rest) if rest and isinstance(part, PreTrainedModel) else module


def _outer_lists(module: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the ModuleLists by path, without those inside others: a block may contain lists, such as of experts."""
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    return {
        name: part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists if other)
    }


def _fitting(module: nn.Module) -> str | None:
    """Return the path of the one list that fits, or of the one that fits in a part of the model; None without one."""
    lists = {
        name: part
        for name, part in _outer_lists(module).items()
        if _holds_blocks(part) and not any(word in name for word in NO_BLOCKS)
    }
    depth = _depth(module)
    by_depth = [name for name, part in lists.items() if len(part) == depth]
    if len(by_depth) == 1:
        return by_depth[0]
    for part in PARTS:
        if (child := getattr(module, part, None)) is not None and isinstance(child, nn.Module):
            inside = _fitting(child)
            if inside is not None:
                return f"{part}.{inside}"
    return next(iter(lists)) if len(lists) == 1 and not hasattr(module, "decoder") else None


def _depth(module: nn.Module) -> int | None:
    config: Any = getattr(module, "config", None)
    declared = (getattr(config, name, None) for name in DEPTH_KEYS)
    return next((depth for depth in declared if isinstance(depth, int)), None)


def _holds_blocks(blocks: nn.ModuleList) -> bool:
    """Return True for a list of blocks or of lists of them; some models keep as many single layers in a list, too."""
    return len(blocks) > 0 and all(any(True for _ in block.children()) for block in blocks)


def _of_stage(block: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks of a stage of an image model, such as Swin's or ConvNeXt's; any other block as it is."""
    if isinstance(block, nn.ModuleList):
        return list(block)
    if not type(block).__name__.endswith("Stage"):
        return [block]
    lists = [child for child in block.children() if isinstance(child, nn.ModuleList | nn.Sequential)]
    inner = [child for child in lists if len(child) and all(any(True for _ in member.children()) for member in child)]
    return list(inner[0]) if len(inner) == 1 else [block]
