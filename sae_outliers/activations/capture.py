"""One forward pass, the outputs of the wanted blocks, and nothing after the last of them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_outliers.models.backbone import Backbone, Batch


class _LastLayerReached(Exception):
    pass


@torch.inference_mode()
def capture(backbone: Backbone, batch: Batch, layers: Iterable[int]) -> dict[int, Tensor]:
    """Outputs [items, positions, d_model] of `layers` (1-based), float32; the forward pass stops at the last one.

    Raises:
        RuntimeError: a layer's block did not run in the forward pass.
    """
    wanted = set(layers)
    captured: dict[int, Tensor] = {}
    runs = Counter[int]()

    def keep(layer: int, output: Any) -> None:
        runs[layer] += 1
        if runs[layer] != backbone.run_of(layer):
            return
        captured[layer] = backbone.hidden(output).float()
        if len(captured) == len(wanted):
            raise _LastLayerReached

    handles = [
        backbone.block(layer).register_forward_hook(lambda _m, _i, output, layer=layer: keep(layer, output))
        for layer in wanted
    ]
    try:
        backbone.module(**batch.inputs)
    except _LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := wanted - captured.keys():
        raise RuntimeError(f"the forward pass did not reach layer(s) {sorted(missing)}: check the model's `blocks`")
    return captured
