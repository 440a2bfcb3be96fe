"""`check=true`: load a model and run one batch, without a store and without an SAE."""

import logging
import time
from collections.abc import Sequence

from sae_outliers.activations.split import SPECIAL
from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import stream_of
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import postln
from sae_outliers.utils.provenance import device_name, peak_memory_mb

log = logging.getLogger(__name__)


def check_model(cfg: RunConfig, layers: Sequence[int]) -> None:
    """Load the model, run one batch of its data, and log shapes, γ at each layer, seconds and memory.

    Raises:
        ValueError: the data is empty, or a layer's width is not what the model's config says.
    """
    stream = stream_of(cfg)
    device = stream.device
    start = time.perf_counter()
    backbone = stream.load_backbone()
    weights = sum(parameter.numel() for parameter in backbone.module.parameters())
    log.info("%s: %d blocks, %.4g parameters, loaded in %.0f s on %s", cfg.model.name, len(backbone.blocks), weights,
             time.perf_counter() - start, device_name(device))  # fmt: skip
    batch = next(stream.batches(backbone), None)
    if batch is None:
        raise ValueError(f"data={cfg.data.name} produced no items for {cfg.model.name}")
    start = time.perf_counter()
    captured = stream.rows(backbone, batch, layers)
    seconds = time.perf_counter() - start
    log.info("%s", backbone.agreed)
    for layer in layers:
        ordinary = captured.rows[layer][(captured.flags[layer] & SPECIAL == 0).to(device)]
        if cfg.model.d_model not in (None, ordinary.shape[1]):
            raise ValueError(f"layer {layer} is {ordinary.shape[1]} wide, but model.d_model={cfg.model.d_model}")
        gammas = moments([postln(ordinary)]).gamma, moments([ordinary]).gamma
        log.info("layer %d: %d tokens x %d, γ post-LN %.3g, γ raw %.3g", layer, *ordinary.shape, *gammas)
    inputs = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.inputs.items())
    log.info("one batch of %d item(s) (%s) took %.3g s; %.0f MB of memory at most", captured.items, inputs, seconds,
             peak_memory_mb(device))  # fmt: skip
