"""What a block must put out, checked on the first batch against what the model's library knows.

Each layer is one run of its block, in order; its output is [items, positions, d_model], with the positions of the mask,
the width that the configuration (transformers) or `feature_info` (timm) declares, and the values of the library's own
hidden states where the model gives them.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from sae_outliers.models.backbone import Backbone, Batch

log = logging.getLogger(__name__)

LARGEST = 1e8  # of a sane activation; the massive ones of large language models stay below 1e6
LARGEST_RATIO = 1e5  # of a mean to the spread around it: float32 resolves the spread no longer


def checked(backbone: Backbone, batch: Batch) -> str:
    """Return which blocks were chosen and what agreed with the library, after one forward pass of two items at most.

    Raises:
        ValueError: what the blocks put out is not a layer's residual stream; the block and the reason are named.
    """
    sample = _sample(batch)
    layers, given = _observe(backbone, sample)
    names = _names(backbone)
    shapes = _shapes(backbone, layers, sample)
    for layer, (name, output) in enumerate(zip(names, layers, strict=True), start=1):
        _require_sane(f"layer {layer} ({name})", output)
    return "; ".join([shapes, *_agreed_states(backbone, names, layers, given)])


def agreed_shapes(backbone: Backbone, batch: Batch) -> str:
    """Return what `checked` does as far as it follows from shapes, which networks on the meta device give as well."""
    sample = _sample(batch)
    layers, _ = _observe(backbone, sample)
    return _shapes(backbone, layers, sample)


def _shapes(backbone: Backbone, layers: Sequence[Tensor], sample: Batch) -> str:
    names = _names(backbone)
    for name, output in zip(names, layers, strict=True):
        _require_shape(name, output, sample)
    where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    widths = [output.shape[2] for output in layers]
    return f"layers are the outputs of {where}; {_agreed_widths(backbone.module, names, widths)}"


def _sample(batch: Batch) -> Batch:
    """Return the first items of a batch, one or two of them, so that items and positions cannot be mixed up."""
    items = _items(batch)
    positions = None if batch.mask is None else batch.mask.shape[1]
    n = 1 if items == 1 or positions == 2 else 2

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:n]

    inputs = {
        name: tensor[:n] if tensor.ndim and len(tensor) == items else tensor for name, tensor in batch.inputs.items()
    }
    return Batch(inputs, cut(batch.mask), cut(batch.special), cut(batch.begins))


def _items(batch: Batch) -> int:
    for tensor in (batch.mask, batch.special, batch.begins):
        if tensor is not None:
            return len(tensor)
    return len(next(iter(batch.inputs.values())))


@torch.inference_mode()
def _observe(backbone: Backbone, sample: Batch) -> tuple[list[Tensor], Any]:
    """Return what each layer puts out in a whole forward pass, and what the network returns.

    Raises:
        ValueError: a block runs more or less often than it stands in the list of blocks, or puts out no tensor.
    """
    distinct = {id(block): block for block in backbone.blocks}
    runs: dict[int, list[Any]] = {key: [] for key in distinct}
    handles = [
        block.register_forward_hook(lambda _m, _i, output, key=key: runs[key].append(output))
        for key, block in distinct.items()
    ]
    try:
        given = _forward(backbone.module, sample)
    finally:
        for handle in handles:
            handle.remove()
    names = _names(backbone)
    for name, block in zip(names, backbone.blocks, strict=True):
        expected = sum(other is block for other in backbone.blocks)
        if len(runs[id(block)]) != expected:
            raise ValueError(
                f"{name} ran {len(runs[id(block)])} times in a forward pass, not {expected}: its output is no one "
                "layer's. Name another list of blocks with model.loader.blocks="
            )
    taken = {key: iter(outputs) for key, outputs in runs.items()}
    return [_states(backbone, name, next(taken[id(block)])) for name, block in
            zip(names, backbone.blocks, strict=True)], given  # fmt: skip


def _states(backbone: Backbone, name: str, output: Any) -> Tensor:
    states = backbone.hidden(output)
    if not isinstance(states, Tensor):
        raise ValueError(f"{name} puts out {type(states).__name__}, not one tensor: it has no single residual stream")
    return states.float()


def _forward(module: nn.Module, sample: Batch) -> Any:
    """Run the network, with its hidden states if it is one of transformers' own."""
    if not type(module).__module__.startswith("transformers.models."):
        return module(**sample.inputs)
    try:
        return module(**sample.inputs, output_hidden_states=True, return_dict=True)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        return module(**sample.inputs)


def _names(backbone: Backbone) -> list[str]:
    """Return the block of each layer by its path in the network, with its run where it runs several times."""
    paths = {id(part): name or type(part).__name__ for name, part in backbone.module.named_modules()}
    seen: dict[int, int] = {}
    names = []
    for block in backbone.blocks:
        seen[id(block)] = seen.get(id(block), 0) + 1
        repeated = sum(other is block for other in backbone.blocks) > 1
        path = paths.get(id(block), type(block).__name__)
        names.append(f"{path}, run {seen[id(block)]}" if repeated else path)
    return names


def _require_shape(name: str, output: Tensor, sample: Batch) -> None:
    if output.ndim != 3:
        raise ValueError(
            f"{name} puts out {list(output.shape)}, not [items, positions, d_model]"
            + (": it carries several residual streams, or a grid" if output.ndim == 4 else "")
            + ", which cannot be measured as one layer"
        )
    for kind, tensor in (("mask", sample.mask), ("special", sample.special)):
        if tensor is not None and tensor.shape != output.shape[:2]:
            swapped = " (items and positions are swapped)" if tensor.shape == output.shape[1::-1] else ""
            raise ValueError(
                f"{name} puts out [items, positions] = {list(output.shape[:2])}, but the {kind} covers "
                f"{list(tensor.shape)}{swapped}: which position is which token is not known"
            )
    if len(output) != _items(sample):
        raise ValueError(f"{name} puts out {len(output)} items for {_items(sample)} inputs")


def _require_sane(name: str, output: Tensor) -> None:
    if not output.isfinite().all():
        raise ValueError(
            f"{name} puts out {int((~output.isfinite()).sum())} values that are not finite: its weights are damaged, "
            "or overflow in their type (model.loader.dtype=float32 where that is 16 bits)"
        )
    rows = output.flatten(0, 1)
    ratio = rows.mean(0).norm() / rows.std(0, correction=0).norm()
    if rows.abs().max() > LARGEST or (len(rows) > 1 and LARGEST_RATIO < ratio < torch.inf):
        log.warning(
            "%s: activations up to %.3g, with a mean of %.3g times their spread, are absurd: are its weights damaged?",
            name, rows.abs().max(), ratio,
        )  # fmt: skip


def _agreed_widths(module: nn.Module, names: Sequence[str], widths: Sequence[int]) -> str:
    """Return in words that the widths are those that the library declares. Raise ValueError if they are not."""
    declared, source = _declared_widths(module, names)
    said = ", ".join(str(width) for width, _ in groupby(widths))
    if not declared:
        return f"width {said}, about which the library says nothing"
    if lacking := declared - set(widths):
        raise ValueError(
            f"{names[0]} to {names[-1]} put out widths of {said}, but {source} says {sorted(lacking)}: they are not "
            "the residual stream. Name other blocks with model.loader.blocks="
        )
    return f"width {said} as {source} says"


def _declared_widths(module: Any, names: Sequence[str]) -> tuple[set[int], str]:
    """Return the widths that must be among those of the blocks, and who says so."""
    stages = getattr(module, "feature_info", None)
    if stages and all(isinstance(stage, dict) for stage in stages):
        # earlier ones may be the stem's, and a last one may be that of a convolution after the blocks
        ours = [stage["num_chs"] for stage in stages if any(name.startswith(stage["module"]) for name in names)]
        return set(ours[-1:]), "timm's feature_info"
    config = getattr(module, "config", None)
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    return ({width}, "the model's configuration") if isinstance(width, int) else (set(), "")


def _agreed_states(backbone: Backbone, names: Sequence[str], layers: Sequence[Tensor], given: Any) -> Iterator[str]:
    """Yield in words with what hidden states of the library the layers agree.

    Raises:
        ValueError: it gives one for each block, and they differ before the last, which often has a norm after it.
    """
    candidates = [states for states in _state_lists(backbone, given) if len(states) in (len(layers), len(layers) + 1)]
    matches = [
        [state.shape == layer.shape and torch.allclose(state, layer, rtol=1e-3, atol=1e-5)
         for state, layer in zip(states[shift:], layers, strict=False)]
        for states in candidates for shift in (1, 0)
    ]  # fmt: skip
    if not matches:
        return
    best = max(matches, key=sum)
    if not all(best[: len(layers) - 1]):
        differing = names[best.index(False)]
        raise ValueError(
            f"{differing} does not put out the hidden state that transformers gives for it: these blocks are not the "
            "residual stream. Name others with model.loader.blocks="
        )
    after = "" if sum(best) == len(layers) else " (the last one has the final norm in it)"
    yield f"{sum(best)} of {len(layers)} equal to transformers' hidden states{after}"


def _state_lists(backbone: Backbone, given: Any) -> Iterator[list[Tensor]]:
    for name in given.keys() if hasattr(given, "keys") else ():
        states = given[name]
        if name.endswith("hidden_states") and isinstance(states, tuple | list):
            # grids are turned as the blocks' are; what has three dimensions is [items, positions, d_model] already
            tensors = [state for state in states if isinstance(state, Tensor)]
            yield [(backbone.hidden(state) if state.ndim == 4 else state).float() for state in tensors]
