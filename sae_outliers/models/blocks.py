"""Where a transformers model keeps its blocks."""

from collections.abc import Iterator

from torch import nn

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "depth")  # the names that configurations have for it


def blocks_path(module: nn.Module, path: str | None = None) -> str:
    """The dotted path of the list of blocks inside `module`: `path` if it is one, or the only one that fits.

    It fits if it is as long as the configuration says that the model is deep, and its members are made of parts.

    Raises ValueError, with the lists that the model has, if there is no list at `path`, or not just one that fits.
    """
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    if path is not None and path in lists:
        return path
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    found = ", ".join(f"{name} ({len(lists[name])})" for name in outer) or "no list at all"
    if path is not None:
        raise ValueError(f"{type(module).__name__} has no list of blocks {path!r}; it has {found}")
    depth = _depth(module)
    fitting = [name for name in outer if len(lists[name]) == depth and all(map(_is_composite, lists[name]))]
    if len(fitting) != 1:
        raise ValueError(
            f"which list of {type(module).__name__} holds its blocks is not plain: name it with model.loader.blocks=; "
            f"the model has {found}"
        )
    return fitting[0]


def block_list(module: nn.Module, path: str) -> list[nn.Module]:
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _depth(module: nn.Module) -> int | None:
    def named() -> Iterator[int]:
        for name in COUNTS:
            number = getattr(getattr(module, "config", None), name, None)
            if isinstance(number, int):
                yield number

    return next(named(), None)


def _is_composite(module: nn.Module) -> bool:
    """Whether a block and not a single layer, of which some models keep as many."""
    return any(True for _ in module.children())
