"""Find the list of blocks inside a transformers model."""

from collections.abc import Iterator

from torch import nn

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "depth")  # names of the block count in configurations


def blocks_path(module: nn.Module, path: str | None = None) -> str:
    """Return the dotted path of the ModuleList that holds the blocks: `path` if given, otherwise the only match.

    A list matches if its length is the depth in the model's configuration and its members have submodules.

    Raise ValueError, listing the model's ModuleLists, if there is none at `path`, or not exactly one match.
    """
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if path is not None and path in lists:
        return path
    # a block may contain lists of its own, such as experts
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = ", ".join(f"{name} ({len(lists[name])})" for name in outer) or "no list at all"
    if path is not None:
        raise ValueError(f"{type(module).__name__} has no list of blocks {path!r}; it has {found}")
    depth = _depth(module)
    fitting = [name for name in outer if len(lists[name]) == depth and all(map(_is_composite, lists[name]))]
    if len(fitting) != 1:
        raise ValueError(
            f"cannot tell which ModuleList of {type(module).__name__} holds the blocks: name it with "
            f"model.loader.blocks=; the model has {found}"
        )
    return fitting[0]


def block_list(module: nn.Module, path: str) -> list[nn.Module]:
    """Return the blocks in the ModuleList at `path`."""
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _depth(module: nn.Module) -> int | None:
    def declared() -> Iterator[int]:
        for name in DEPTH_KEYS:
            depth = getattr(getattr(module, "config", None), name, None)
            if isinstance(depth, int):
                yield depth

    return next(declared(), None)


def _is_composite(module: nn.Module) -> bool:
    """Return True for a block; some models also keep as many single layers (norms, say) in a list."""
    return any(True for _ in module.children())
