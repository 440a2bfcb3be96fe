"""Checks that any backbone must pass, however its model is loaded."""

import torch
from torch import Tensor

from sae_outliers.activations.capture import capture
from sae_outliers.models.backbone import Backbone, Batch


def batch_of(backbone: Backbone, *documents: str) -> Batch:
    """Return the documents' items as one batch."""
    (batch,) = backbone.batches(documents, batch_size=100)
    assert batch.mask is not None
    assert batch.special is not None
    return batch


def captured(backbone: Backbone, *documents: str) -> dict[int, Tensor]:
    """Return the outputs [items, positions, d_model] of all layers."""
    return capture(backbone, batch_of(backbone, *documents), range(1, len(backbone.blocks) + 1))


def stops_after(backbone: Backbone, layer: int, document: str) -> bool:
    """Return True if `layer` is captured as when all layers are, and no later block ran."""
    ran: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(backbone.blocks, 1)
    ]
    alone = capture(backbone, batch_of(backbone, document), [layer])[layer]
    for hook in hooks:
        hook.remove()
    return ran[-1] <= layer and torch.equal(alone, captured(backbone, document)[layer])


def padding_leaks(backbone: Backbone, short: str, long: str, tolerance: float = 1e-5) -> bool:
    """Return True if the tokens of `short` change when a longer item in the batch pads them."""
    alone, padded = captured(backbone, short), captured(backbone, short, long)
    assert batch_of(backbone, short).mask.all()  # type: ignore[union-attr]
    return any(
        not torch.allclose(padded[layer][:1, : states.shape[1]], states, atol=tolerance, rtol=tolerance)
        for layer, states in alone.items()
    )
