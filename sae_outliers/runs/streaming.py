"""Measuring at initialisation without a store: two passes of the token stream, for all layers and variants at once.

The first pass takes the moments, from which γ and every centering follow; the second counts the fates. What it needs
in memory does not grow with the tokens: a covariance for each layer, in float64, and one SAE for each width.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from sae_outliers.activations.extract import load_backbone
from sae_outliers.activations.store import SPECIAL, is_token
from sae_outliers.activations.stream import batches, stream
from sae_outliers.config import RunConfig
from sae_outliers.models.backbone import Backbone
from sae_outliers.runs.job import Job, directory_of, sae_seed
from sae_outliers.runs.layer import finish, unfinished, write_config
from sae_outliers.runs.layer_data import Severity, SeverityMeter
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.transforms import PREPROCESSINGS
from sae_outliers.tracking.base import NoTracker, start_tracker
from sae_outliers.utils.device import resolve_device
from sae_outliers.utils.progress import Progress

log = logging.getLogger(__name__)


@dataclass
class StreamedLayer:
    """Stands where a stored layer would, for jobs that do not train."""

    device: torch.device
    severity: Severity
    d_model: int
    n_train: int = 0

    def eval_tokens(self) -> Iterator[Tensor]:
        raise NotImplementedError("tokens that are not stored cannot be read again")


def measure_in_stream(variants: Sequence[RunConfig], layers: Sequence[int]) -> list[Path]:
    """Run all layers under each config to their records, or recognise those that are finished; returns their folders.

    Raises:
        ValueError: the stream of tokens ends too early.
    """
    runs = {directory_of(cfg, layer): (cfg, layer) for layer in layers for cfg in variants}
    with unfinished(runs) as left:
        if left:
            start = time.monotonic()
            jobs = measured({directory: runs[directory] for directory in left})
            for job in jobs:
                job.tracker = start_tracker(job.cfg, job.layer, job.directory.name)
                finish(job, len(jobs), time.monotonic() - start)
    return list(runs)


def measured(runs: dict[Path, tuple[RunConfig, int]]) -> list[Job]:
    """A job for each run, its fates at initialisation counted."""
    cfg = next(iter(runs.values()))[0]
    layers = sorted({layer for _, layer in runs.values()})
    device = resolve_device(cfg.device)
    backbone = load_backbone(cfg, device)
    meters = {layer: SeverityMeter(cfg, device) for layer in layers}
    for rows in one_pass(cfg, backbone, layers, device, "moments"):
        for layer, (x, flags) in rows.items():
            meters[layer].update(x, flags & SPECIAL > 0)
    jobs = new_jobs(runs, {layer: meter.severity for layer, meter in meters.items()}, device)
    preprocess = PREPROCESSINGS[cfg.preprocessing]
    for rows in one_pass(cfg, backbone, layers, device, "fates"):
        for layer, (x, flags) in rows.items():
            tokens = preprocess(x[torch.from_numpy(is_token(flags.numpy(), cfg.special_tokens)).to(device)])
            for job in jobs:
                if job.layer == layer:
                    job.count_initial([tokens])
    return jobs


def new_jobs(
    runs: dict[Path, tuple[RunConfig, int]], severities: dict[int, Severity], device: torch.device
) -> list[Job]:
    """Jobs that are ready to count; those with the same random SAE share it."""
    shared: dict[str, SparseAutoencoder] = {}
    jobs = []
    for directory, (cfg, layer) in runs.items():
        write_config(directory, cfg, layer)
        severity = severities[layer]
        job = Job(cfg, layer, directory, NoTracker(), StreamedLayer(device, severity, len(severity.seen.mean)))
        key = f"{job.data.d_model} {sae_seed(cfg)} {OmegaConf.to_yaml(cfg.sae)}"
        follows_from_seed = cfg.init.name == "random" and cfg.init.b_dec == "zeros"
        job.prepare(shared.get(key) if follows_from_seed else None)
        if follows_from_seed:
            shared[key] = job.sae
        jobs.append(job)
    return jobs


def one_pass(
    cfg: RunConfig, backbone: Backbone, layers: Sequence[int], device: torch.device, title: str
) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """The stream up to the last of the `n_eval` tokens of each layer: by layer rows [n, d_model] and flags [n]."""
    left = dict.fromkeys(layers, cfg.n_eval)
    with Progress(f"{cfg.model.name}: {title} of {len(layers)} layer(s)", cfg.n_eval, "tokens") as progress:
        for captured in stream(cfg, backbone, batches(cfg, backbone, device), layers, device):
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
        f"data={cfg.data.name} has only {cfg.n_eval - max(left.values())} tokens for {cfg.model.name}, but n_eval asks "
        f"for {cfg.n_eval}: lower it or name larger data"
    )


def up_to(flags: Tensor, wanted: int, special_tokens: bool) -> tuple[int, int]:
    """The end of the rows that hold the first `wanted` tokens, or all of them, and how many tokens those hold."""
    kept = is_token(flags.numpy(), special_tokens).nonzero()[0]
    if len(kept) < wanted:
        return len(flags), len(kept)
    return (int(kept[wanted - 1]) + 1 if wanted else 0), wanted
