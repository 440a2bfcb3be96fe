"""Fill the activation store: the token stream once through the network, for every layer that lacks tokens."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from sae_outliers.activations.coding import CENTRED_ON
from sae_outliers.activations.layer_files import LayerFiles, StoredLayer
from sae_outliers.activations.stream import Captured, TokenStream
from sae_outliers.models.backbone import Backbone
from sae_outliers.utils.files import write_json
from sae_outliers.utils.preemption import defer_preemption
from sae_outliers.utils.progress import Progress, duration
from sae_outliers.utils.provenance import peak_memory_mb

log = logging.getLogger(__name__)

SHARD_BYTES = 64 << 20  # of all layers together, in float32: what is in memory before it is written


@dataclass(frozen=True)
class Wanted:
    """Tokens to be stored: `n_eval` in float32, and `n_train` of later documents in `dtype`."""

    n_eval: int
    n_train: int
    dtype: str

    @property
    def total(self) -> int:
        return self.n_eval + self.n_train

    @property
    def exact(self) -> int:
        """Return how many are float32: with float16 at least as many as the others are centred on."""
        return self.total if self.dtype == "float32" else min(max(self.n_eval, CENTRED_ON), self.total)

    def are_in(self, layer: StoredLayer) -> bool:
        return layer.holds(self.dtype, self.n_eval, self.n_train)

    def are_begun_in(self, layer: StoredLayer) -> bool:
        """Whether all are there that are float32."""
        return self.are_in(layer) if self.dtype == "float32" else layer.is_joined(self.exact)

    def bytes_after(self, tokens: int) -> float:
        """Return the mean bytes of a number of the tokens that follow after so many."""
        left = max(self.total - tokens, 1)
        return 2 + 2 * min(max(self.exact - tokens, 0) / left, 1)


def fill(
    directory: Path, settings: Mapping[str, Any], stream: TokenStream, layers: Sequence[int], wanted: Wanted
) -> None:
    """Make sure that the store holds the tokens wanted at `layers`; what it holds is not computed again.

    `settings` say what determines the rows; they are kept beside them. One process at a time fills a store; others
    wait for it. Layers at the same position share one forward pass.

    Raises:
        ValueError: the data ends before there are enough tokens, or the disk is too small for them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        stored = [StoredLayer(directory, layer) for layer in layers]
        lacking = [layer for layer in stored if not wanted.are_in(layer)]
        if not lacking:
            return
        if not (directory / "store.json").exists():
            write_json(directory / "store.json", settings)
        backbone = stream.load_backbone()
        for together in _alike([layer for layer in lacking if not wanted.are_begun_in(layer)], "exact"):
            Extraction(stream, backbone, together, "exact", wanted).run(wanted.exact, wanted.are_begun_in)
        left = [layer for layer in lacking if not wanted.are_in(layer)]
        for layer in left:
            layer.begin_rest()
        for together in _alike(left, "rest"):
            Extraction(stream, backbone, together, "rest", wanted).run(wanted.total, wanted.are_in)


def _alike(layers: Sequence[StoredLayer], part: str) -> Iterator[list[StoredLayer]]:
    """Yield the layers whose files of this part end at the same item of the stream."""

    def items(layer: StoredLayer) -> int:
        return layer.files(part).extent().items

    return (list(group) for _, group in groupby(sorted(layers, key=items), key=items))


def holds(directory: Path, layers: Sequence[int], wanted: Wanted) -> bool:
    """Whether these layers hold so many tokens, as their files say; shards are verified when they are read."""
    return directory.is_dir() and all(wanted.are_in(StoredLayer(directory, layer)) for layer in layers)


class Extraction:
    """One pass of the token stream into the files of layers at the same position."""

    def __init__(
        self, stream: TokenStream, backbone: Backbone, layers: Sequence[StoredLayer], part: str, wanted: Wanted
    ) -> None:
        self.stream, self.backbone, self.layers, self.wanted = stream, backbone, layers, wanted
        self.files = {layer.number: layer.files(part) for layer in layers}
        extents = [file.extent() for file in self.files.values()]
        self.done, self.tokens = extents[0].items, min(extent.tokens for extent in extents)
        directory = next(iter(self.files.values())).extent_path.parent
        left = max(wanted.total - self.tokens, 0)
        title = f"{stream.model}, {len(layers)} layer(s), {left} tokens to go"
        self.forecast = Forecast(title, directory, stream.device, left, wanted.bytes_after(self.tokens))

    def run(self, least: int, is_done: Callable[[StoredLayer], bool]) -> None:
        """Append to all files until they are done, which needs at least so many tokens."""
        shards = Shards(self.files)
        title = f"{self.stream.model}: activations of {len(self.files)} layer(s)"
        with Progress(title, least, "tokens") as progress:
            progress.update(self.tokens)
            try:
                with defer_preemption() as signal:
                    for captured in self.stream.read(self.backbone, list(self.files), self.done):
                        self.forecast.update(captured)
                        shards.add(captured)
                        self.tokens += captured.tokens
                        progress.update(self.tokens)
                        if self.tokens >= least and self._are_done(shards, is_done):
                            return
                        if signal.received:
                            shards.write()
                            signal.deliver()
            finally:
                shards.write()
        raise ValueError(
            f"data={self.stream.data} has only {self.tokens} tokens for {self.stream.model}, but n_eval and "
            f"train.n_tokens ask for {self.wanted.total}, in different documents: lower them or name larger data"
        )

    def _are_done(self, shards: "Shards", is_done: Callable[[StoredLayer], bool]) -> bool:
        shards.write()
        return all(map(is_done, self.layers))


class Forecast:
    """The cost of an extraction, estimated from its first batches."""

    def __init__(self, title: str, directory: Path, device: torch.device, tokens: int, bytes_per_number: float) -> None:
        self.title, self.directory, self.device = title, directory, device
        self.left, self.bytes_per_number, self.seen = tokens, bytes_per_number, 0
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
        disk = batches_left * self.bytes_per_number * sum(rows.numel() for rows in captured.rows.values())
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
        self.bytes = 0
        self.copying_from: set[torch.device] = set()

    def add(self, captured: Captured) -> None:
        rows = {layer: self._to_host(x) for layer, x in captured.rows.items()}
        self.waiting.append(Captured(rows, captured.flags, captured.items))
        self.bytes += captured.nbytes
        if self.bytes >= SHARD_BYTES:
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
        waiting, self.waiting, self.bytes = self.waiting, [], 0  # none is written twice, if this is broken off
        for device in self.copying_from:
            torch.cuda.synchronize(device)
        items = sum(captured.items for captured in waiting)
        for layer, file in self.files.items():
            rows, flags = ([getattr(captured, what)[layer] for captured in waiting] for what in ("rows", "flags"))
            file.append(torch.cat(rows), torch.cat(flags), items)
