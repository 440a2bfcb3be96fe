"""Fill the activation store: the token stream once through the network, for every layer that lacks tokens."""

import logging
import shutil
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from filelock import FileLock
from omegaconf import OmegaConf

from sae_outliers.activations.store import LayerFiles
from sae_outliers.activations.stream import Captured, batches, stream
from sae_outliers.config import RunConfig
from sae_outliers.models.backbone import Backbone
from sae_outliers.utils.device import resolve_device
from sae_outliers.utils.files import digest, file_fingerprints, write_json
from sae_outliers.utils.instantiate import instantiate
from sae_outliers.utils.preemption import defer_preemption
from sae_outliers.utils.progress import Progress
from sae_outliers.utils.provenance import peak_memory_mb

log = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20  # of all layers together: what is in memory before it is written


def store_identity(cfg: RunConfig) -> dict[str, object]:
    """All that determines the stored rows and their order; their number does not, since a store only grows."""
    data: dict[str, object] = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]
    data.pop("rescale_mean")  # done after the activations are read
    data.pop("batch_size")  # changes no more than rounding
    loader: dict[str, object] = OmegaConf.to_container(cfg.model.loader, resolve=True)  # type: ignore[assignment]
    loader.pop("trust_remote_code", None)  # a permission
    identity = {"model": cfg.model.name, "loader": loader, "data": data, "seed": cfg.seed, "format": 2}
    local = [Path(place).expanduser() for place in (cfg.path, cfg.name) if place]
    return identity | {"files": [file_fingerprints(place) for place in local if place.exists()]}


def store_dir(cfg: RunConfig) -> Path:
    identity = store_identity(cfg)
    return Path(cfg.results_dir) / "activations" / f"{cfg.model.name}-{digest(identity)}"


def training_tokens(cfg: RunConfig) -> int:
    """Tokens to store for training; none for a run that does not train."""
    return cfg.train.n_tokens if cfg.train.steps else 0


def tokens_wanted(cfg: RunConfig) -> int:
    return cfg.n_eval + training_tokens(cfg)


def is_stored(cfg: RunConfig, layers: Sequence[int]) -> bool:
    """Whether these layers hold the tokens that `cfg` asks for, as their files say; shards are verified when read."""
    directory = store_dir(cfg)
    files = (LayerFiles(directory, layer) for layer in layers)
    return directory.is_dir() and all(file.holds(cfg.n_eval, training_tokens(cfg)) for file in files)


def load_backbone(cfg: RunConfig, device: torch.device) -> Backbone:
    """The network that the config names, in eval mode on the device."""
    backbone: Backbone = instantiate(cfg.model.loader)
    backbone.module.eval().to(device)
    return backbone


def extract(cfg: RunConfig, layers: Sequence[int]) -> None:
    """Make sure that `layers` of the model have the tokens that `cfg` asks for; what is stored is not done again.

    One process at a time fills a store; others wait for it. Layers that are equally far share one forward pass.

    Raises:
        ValueError: the data ends before there are enough tokens, or the disk is too small for them.
    """
    directory = store_dir(cfg)
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        files = {layer: LayerFiles(directory, layer) for layer in layers}
        lacking = [layer for layer in layers if not files[layer].holds(cfg.n_eval, training_tokens(cfg))]
        if not lacking:
            return
        write_json(directory / "store.json", store_identity(cfg))
        device = resolve_device(cfg.device)
        backbone = load_backbone(cfg, device)

        def items_done(layer: int) -> int:
            return files[layer].extent().items

        for done, group in groupby(sorted(lacking, key=items_done), key=items_done):
            together = {layer: files[layer] for layer in group}
            _extract_from(cfg, backbone, together, done, device)


class Forecast:
    """What an extraction will take, from what its first batches took."""

    def __init__(self, cfg: RunConfig, files: dict[int, LayerFiles]) -> None:
        left = tokens_wanted(cfg) - min(file.extent().tokens for file in files.values())
        self.cfg, self.left, self.seen = cfg, max(left, 0), 0
        self.what = f"{cfg.model.name}, {len(files)} layer(s), {self.left} tokens to go"
        self.last = time.perf_counter()

    def update(self, captured: Captured, device: torch.device) -> None:
        """Takes in a batch: after the first, checks the disk; after the second, when all is warm, says what it takes.

        Raises:
            ValueError: the disk has less space than the activations need.
        """
        self.seen += 1
        seconds, self.last = time.perf_counter() - self.last, time.perf_counter()
        if self.seen > 2:
            return
        batches_left = self.left / max(captured.tokens, 1)
        disk = batches_left * captured.nbytes
        if self.seen == 1:
            self._check(disk)
            return
        memory = peak_memory_mb(device) * 2**20 + SHARD_BYTES
        took = _duration(batches_left * seconds)
        log.info("%s: about %.2g GB on disk, %.2g GB of memory, %s", self.what, disk / 1e9, memory / 1e9, took)

    def _check(self, disk: float) -> None:
        directory = store_dir(self.cfg)
        free = shutil.disk_usage(directory).free
        if disk > free:
            raise ValueError(
                f"{self.what}: {disk / 1e9:.3g} GB do not fit in {directory.parent}, where {free / 1e9:.3g} GB are "
                "free: take fewer layers or tokens, another results_dir, or store=false"
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Shards:
    """What forward passes gave and is not yet written; it is written for all layers at once."""

    def __init__(self, files: dict[int, LayerFiles]) -> None:
        self.files = files
        self.waiting: list[Captured] = []
        self.bytes = 0

    def add(self, captured: Captured) -> None:
        self.waiting.append(Captured({k: x.cpu() for k, x in captured.rows.items()}, captured.flags, captured.items))
        self.bytes += captured.nbytes
        if self.bytes >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        if not self.waiting:
            return
        waiting, self.waiting, self.bytes = self.waiting, [], 0  # none is written twice, if this is broken off
        items = sum(captured.items for captured in waiting)
        for layer, file in self.files.items():
            rows, flags = ([getattr(captured, what)[layer] for captured in waiting] for what in ("rows", "flags"))
            file.append(torch.cat(rows), torch.cat(flags), items)


def _extract_from(
    cfg: RunConfig, backbone: Backbone, files: dict[int, LayerFiles], done: int, device: torch.device
) -> None:
    """Append to all `files`, from item `done` of the token stream on, until they hold the tokens wanted."""
    wanted, shards = tokens_wanted(cfg), Shards(files)
    tokens = min(file.extent().tokens for file in files.values())
    forecast, incoming = Forecast(cfg, files), batches(cfg, backbone, device, done)
    with Progress(f"{cfg.model.name}: activations of {len(files)} layer(s)", wanted, "tokens") as progress:
        progress.update(tokens)
        try:
            with defer_preemption() as signal:
                for captured in stream(cfg, backbone, incoming, list(files), device, done):
                    forecast.update(captured, device)
                    shards.add(captured)
                    tokens += captured.tokens
                    progress.update(tokens)
                    if tokens >= wanted and _whole(cfg, shards):
                        return
                    if signal.received:
                        shards.write()
                        signal.deliver()
        finally:
            shards.write()
    raise ValueError(
        f"data={cfg.data.name} has only {tokens} tokens for {cfg.model.name}, but n_eval and train.n_tokens "
        f"ask for {wanted}, in different documents: lower them or name larger data"
    )


def _whole(cfg: RunConfig, shards: Shards) -> bool:
    shards.write()
    return all(file.holds(cfg.n_eval, training_tokens(cfg)) for file in shards.files.values())
