"""Fill the activation store: the token stream once through the network, for every layer that lacks tokens."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from sae_outliers.activations.store import LayerFiles, files_of
from sae_outliers.activations.stream import Captured, TokenStream
from sae_outliers.models.backbone import Backbone
from sae_outliers.utils.files import write_json
from sae_outliers.utils.preemption import defer_preemption
from sae_outliers.utils.progress import Progress, duration
from sae_outliers.utils.provenance import peak_memory_mb

log = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20  # of all layers together, in float32: what is in memory before it is written


def fill(
    directory: Path,
    settings: Mapping[str, Any],
    stream: TokenStream,
    layers: Sequence[int],
    dtype: str,
    n_eval: int,
    n_train: int,
) -> None:
    """Make sure that the store holds the tokens asked for at `layers`; what it holds is not computed again.

    `dtype` is what is written where nothing is stored yet, as `store.files_of` says. `settings` say what determines the rows; they are kept beside them. One process at a time fills a store; others
    wait for it. Layers at the same position share one forward pass.

    Raises:
        ValueError: the data ends before there are enough tokens, or the disk is too small for them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        files = {layer: files_of(directory, layer, dtype, n_eval, n_train) for layer in layers}
        lacking = [layer for layer in layers if not files[layer].holds(n_eval, n_train)]
        if not lacking:
            return
        if not (directory / "store.json").exists():
            write_json(directory / "store.json", settings)
        backbone = stream.load_backbone()

        def items_done(layer: int) -> int:
            return files[layer].extent().items

        for done, group in groupby(sorted(lacking, key=items_done), key=items_done):
            together = {layer: files[layer] for layer in group}
            Extraction(stream, backbone, together, n_eval, n_train).run(done)


def holds(directory: Path, layers: Sequence[int], dtype: str, n_eval: int, n_train: int) -> bool:
    """Whether these layers hold so many tokens, as their files say; shards are verified when they are read."""
    return directory.is_dir() and all(
        files_of(directory, layer, dtype, n_eval, n_train).holds(n_eval, n_train) for layer in layers
    )


class Extraction:
    """One pass of the token stream into the files of layers at the same position."""

    def __init__(
        self, stream: TokenStream, backbone: Backbone, files: dict[int, LayerFiles], n_eval: int, n_train: int
    ) -> None:
        self.stream, self.backbone, self.files = stream, backbone, files
        self.n_eval, self.n_train = n_eval, n_train
        self.tokens = min(file.extent().tokens for file in files.values())
        self.forecast = Forecast(stream, files, n_eval + n_train - self.tokens)

    def run(self, done: int) -> None:
        """Append to all files, from item `done` of the stream on, until they hold the tokens asked for."""
        total, shards = self.n_eval + self.n_train, Shards(self.files)
        title = f"{self.stream.model}: activations of {len(self.files)} layer(s)"
        with Progress(title, total, "tokens") as progress:
            progress.update(self.tokens)
            try:
                with defer_preemption() as signal:
                    for captured in self.stream.read(self.backbone, list(self.files), done):
                        self.forecast.update(captured)
                        shards.add(captured)
                        self.tokens += captured.tokens
                        progress.update(self.tokens)
                        if self.tokens >= total and self._is_complete(shards):
                            return
                        if signal.received:
                            shards.write_for_later()
                            signal.deliver()
            finally:
                shards.write_for_later()
        raise ValueError(
            f"data={self.stream.data} has only {self.tokens} tokens for {self.stream.model}, but n_eval and "
            f"train.n_tokens ask for {total}, in different documents: lower them or name larger data"
        )

    def _is_complete(self, shards: "Shards") -> bool:
        shards.write()
        return all(file.holds(self.n_eval, self.n_train) for file in self.files.values())


class Forecast:
    """The cost of an extraction, estimated from its first batches."""

    def __init__(self, stream: TokenStream, files: dict[int, LayerFiles], tokens_left: int) -> None:
        self.device, self.left, self.seen = stream.device, max(tokens_left, 0), 0
        self.files, self.directory = files, next(iter(files.values())).extent_path.parent
        self.title = f"{stream.model}, {len(files)} layer(s), {self.left} tokens to go"
        self.last = time.perf_counter()

    def update(self, captured: Captured) -> None:
        """Take in a batch: after the first, check the disk; after the second, when all is warm, log the estimate.

        Raises:
            ValueError: the disk has less space than the activations need.
        """
        self.seen += 1
        seconds, self.last = time.perf_counter() - self.last, time.perf_counter()
        if self.seen > 2:
            return
        batches_left = self.left / max(captured.tokens, 1)
        disk = batches_left * sum(
            rows.numel() * self.files[layer].bytes_per_number for layer, rows in captured.rows.items()
        )
        if self.seen == 1:
            self._check(disk)
            return
        memory = peak_memory_mb(self.device) * 2**20 + SHARD_BYTES
        took = duration(batches_left * seconds)
        log.info("%s: about %.2g GB on disk, %.2g GB of memory, %s", self.title, disk / 1e9, memory / 1e9, took)

    def _check(self, disk: float) -> None:
        free = shutil.disk_usage(self.directory).free
        if disk > free:
            raise ValueError(
                f"{self.title}: {disk / 1e9:.3g} GB do not fit in {self.directory.parent}, where {free / 1e9:.3g} GB "
                "are free: take fewer layers or tokens, another results_dir, or store=false"
            )


class Shards:
    """Captured activations waiting to be written, for all layers at once."""

    def __init__(self, files: dict[int, LayerFiles]) -> None:
        self.files = files
        self.waiting: list[Captured] = []
        self.bytes = self.rows = 0
        begun = all(file.extent().rows for file in files.values())
        self.least_rows = 0 if begun else max(file.first_rows for file in files.values())
        self.copying_from: set[torch.device] = set()

    def add(self, captured: Captured) -> None:
        rows = {layer: self._to_host(x) for layer, x in captured.rows.items()}
        self.waiting.append(Captured(rows, captured.flags, captured.items))
        self.bytes += captured.nbytes
        self.rows += min(map(len, captured.flags.values()))
        if self.bytes >= SHARD_BYTES:
            self.write_for_later()

    def write_for_later(self) -> None:
        """Write what is waiting, unless it would begin a layer with fewer rows than it is centred on."""
        if self.rows >= self.least_rows:
            self.write()

    def _to_host(self, rows: Tensor) -> Tensor:
        """Return a copy on the CPU; a GPU makes it after what it has to do, and nothing waits until it is written."""
        if rows.device.type == "cpu":
            return rows
        self.copying_from.add(rows.device)
        return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)

    def write(self) -> None:
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []  # none is written twice, if this is broken off
        self.bytes = self.rows = self.least_rows = 0
        for device in self.copying_from:
            torch.cuda.synchronize(device)
        items = sum(captured.items for captured in waiting)
        for layer, file in self.files.items():
            rows, flags = ([getattr(captured, what)[layer] for captured in waiting] for what in ("rows", "flags"))
            file.append(torch.cat(rows), torch.cat(flags), items)
