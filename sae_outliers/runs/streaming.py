"""Measuring at initialisation without a store: two passes of the token stream, for all layers and variants at once.

The first pass takes the moments, from which γ and every centering follow; the second counts the fates. What it needs
in memory does not grow with the tokens: a covariance for each layer, in float64, and one SAE for each width.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_outliers.activations.split import SPECIAL, is_token
from sae_outliers.activations.stream import TokenStream
from sae_outliers.config import RunConfig
from sae_outliers.models.backbone import Backbone
from sae_outliers.runs.activations import stream_of
from sae_outliers.runs.identity import run_directories, run_settings
from sae_outliers.runs.layer import finish, unfinished, write_config
from sae_outliers.runs.layer_data import Severity, SeverityMeter
from sae_outliers.runs.record import Outcome
from sae_outliers.runs.setup import Fates, RunSetup, set_up
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.transforms import PREPROCESSINGS
from sae_outliers.tracking.base import start_tracker
from sae_outliers.utils.files import digest
from sae_outliers.utils.progress import Progress

Runs = Mapping[Path, tuple[RunConfig, int]]  # by folder: config and layer


def measure_in_stream(variants: Sequence[RunConfig], layers: Sequence[int]) -> list[Path]:
    """Run all layers under each config to their records, or recognise finished ones; return their folders.

    Raises:
        ValueError: the stream of tokens ends too early.
    """
    runs = {
        directory: (cfg, layer)
        for cfg in variants
        for layer, directory in zip(layers, run_directories(cfg, layers), strict=True)
    }
    with unfinished(runs) as left:
        if left:
            start = time.monotonic()
            setups = measured({directory: runs[directory] for directory in left})
            for setup in setups:
                tracker = start_tracker(setup.cfg, setup.layer, setup.directory.name)
                finish(Outcome(setup, None, time.monotonic() - start, side_by_side=len(setups)), tracker)
    return list(runs)


def measured(runs: Runs) -> list[RunSetup]:
    """Return the set-up of each run, its fates at initialisation counted."""
    cfg = next(iter(runs.values()))[0]
    layers = sorted({layer for _, layer in runs.values()})
    stream = stream_of(cfg)
    backbone = stream.load_backbone()
    meters = {layer: SeverityMeter(cfg.preprocessing, cfg.special_tokens, stream.device) for layer in layers}
    for rows in one_pass(cfg, stream, backbone, layers, "moments"):
        for layer, (x, flags) in rows.items():
            meters[layer].update(x, flags & SPECIAL > 0)
    setups = set_up_all(runs, {layer: meter.severity for layer, meter in meters.items()}, stream.device)
    fates = {layer: Fates([setup for setup in setups if setup.layer == layer]) for layer in layers}
    preprocess = PREPROCESSINGS[cfg.preprocessing]
    for rows in one_pass(cfg, stream, backbone, layers, "fates"):
        for layer, (x, flags) in rows.items():
            is_kept = torch.from_numpy(is_token(flags.numpy(), cfg.special_tokens)).to(stream.device)
            fates[layer].count([preprocess(x[is_kept])])
    return setups


def set_up_all(runs: Runs, severities: Mapping[int, Severity], device: torch.device) -> list[RunSetup]:
    """Return set-ups that are ready to count; those with the same random SAE share it."""
    shared: dict[tuple[int, str], SparseAutoencoder] = {}
    setups = []
    for directory, (cfg, layer) in runs.items():
        write_config(directory, cfg, layer)
        key = (len(severities[layer].sae_tokens.mean), _sae_identity(run_settings(cfg)))
        follows_from_seed = cfg.init.name == "random" and cfg.init.b_dec == "zeros"
        sae = shared.get(key) if follows_from_seed else None
        setups.append(set_up(cfg, layer, directory, severities[layer], device, sae=sae))
        if follows_from_seed:
            shared[key] = setups[-1].sae
    return setups


def _sae_identity(settings: Mapping[str, Any]) -> str:
    """A digest of what a random SAE follows from, but for its width."""
    return digest({key: value for key, value in settings.items() if key.startswith(("sae.", "sae_seed"))})


def one_pass(
    cfg: RunConfig, stream: TokenStream, backbone: Backbone, layers: Sequence[int], title: str
) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Read the stream up to the last of the `n_eval` tokens of each layer: by layer rows [n, d_model] and flags [n]."""
    left = dict.fromkeys(layers, cfg.n_eval)
    with Progress(f"{stream.model}: {title} of {len(layers)} layer(s)", cfg.n_eval, "tokens") as progress:
        for captured in stream.read(backbone, layers):
            rows = {}
            for layer in layers:
                end, tokens = up_to(captured.flags[layer], left[layer], cfg.special_tokens)
                left[layer] -= tokens
                rows[layer] = (captured.rows[layer][:end], captured.flags[layer][:end])
            yield rows
            progress.update(cfg.n_eval - max(left.values()))
            if not any(left.values()):
                return
    raise ValueError(
        f"data={stream.data} has only {cfg.n_eval - max(left.values())} tokens for {stream.model}, but n_eval asks "
        f"for {cfg.n_eval}: lower it or name larger data"
    )


def up_to(flags: Tensor, wanted: int, special_tokens: bool) -> tuple[int, int]:
    """The end of the rows that hold the first `wanted` tokens, or all of them, and how many tokens those hold."""
    kept = is_token(flags.numpy(), special_tokens).nonzero()[0]
    if len(kept) < wanted:
        return len(flags), len(kept)
    return (int(kept[wanted - 1]) + 1 if wanted else 0), wanted
