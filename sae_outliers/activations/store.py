"""Activations on disk: for each layer a growing file of float32 rows, shared by every run on that model and data.

`<root>/<digest>/layer_07.f32` holds rows [n, d_model] in the order of the token stream, `layer_07.special.u1` one
byte per row (1: BOS, CLS and the like), and `layer_07.json` how many rows are valid. The JSON is replaced after the
rows are on disk, so a killed extraction goes on from its last whole batch. A later run that needs more tokens
extends the same files. float32, because bfloat16 loses the variation of a dimension with |μ|/σ > 250.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_outliers.files import write_json

ROWS_AT_ONCE = 1 << 20  # flags read at a time while counting tokens
EVAL_ROWS = 4096  # rows of a chunk of evaluation tokens


@dataclass(frozen=True)
class LayerExtent:
    """What is validly stored of a layer; by default nothing."""

    d_model: int = 0
    rows: int = 0
    tokens: int = 0  # rows that are not special
    batches: int = 0  # batches of the token stream that the rows come from


class LayerFiles:
    """The three files of one layer."""

    def __init__(self, directory: Path, layer: int) -> None:
        self.rows_path = directory / f"layer_{layer:02d}.f32"
        self.special_path = directory / f"layer_{layer:02d}.special.u1"
        self.extent_path = directory / f"layer_{layer:02d}.json"

    def extent(self) -> LayerExtent:
        """What is stored, as the file says now."""
        if not self.extent_path.is_file():
            return LayerExtent()
        return LayerExtent(**json.loads(self.extent_path.read_text()))

    def append(self, rows: Tensor, special: Tensor, batches: int) -> None:
        """Add rows [n, d_model] with their flags (bool [n]), which come from the next `batches` batches."""
        extent = self.extent()
        _append(self.rows_path, rows.contiguous().cpu().numpy().astype("<f4", copy=False), extent.rows)
        _append(self.special_path, special.cpu().numpy().astype("u1"), extent.rows)
        ordinary = int((~special).sum())
        grown = LayerExtent(rows.shape[1], extent.rows + len(rows), extent.tokens + ordinary, extent.batches + batches)
        write_json(self.extent_path, asdict(grown))


def _append(path: Path, array: np.ndarray, rows_before: int) -> None:
    """Write `array` after the first `rows_before` rows; what a killed process left behind them is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bytes_before = rows_before * array[:1].nbytes
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(bytes_before)
        file.truncate()
        array.tofile(file)


class LayerTokens:
    """The tokens of one layer that a run sees: the first `n_eval` to measure on, the next `n_train` to train on.

    Tokens come in chunks [tokens, d_model], float32 on the CPU, as the network put them out. Special tokens are left
    out unless `special_tokens`.

    Raises:
        ValueError: fewer tokens are stored than asked for.
    """

    def __init__(self, files: LayerFiles, n_eval: int, n_train: int, special_tokens: bool) -> None:
        extent = files.extent()
        if extent.rows == 0:
            raise ValueError(f"no activations are stored at {files.rows_path}")
        self.d_model = extent.d_model
        self._rows = np.memmap(files.rows_path, dtype="<f4", mode="r", shape=(extent.rows, extent.d_model))
        self._special = np.memmap(files.special_path, dtype="u1", mode="r", shape=(extent.rows,))
        self.n_eval, self.n_train, self.special_tokens = n_eval, n_train, special_tokens
        self._eval_end = self._row_after(n_eval)
        self._train_end = self._row_after(n_eval + n_train)

    def eval_chunks(self) -> Iterator[Tensor]:
        """The evaluation tokens, always the same and in the same order."""
        return (self._read(start, stop) for start, stop in self._eval_bounds())

    def eval_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All stored rows [n, d_model] up to the last evaluation token, and which of them are special, bool [n]."""
        for start, stop in self._eval_bounds():
            yield (
                torch.from_numpy(np.array(self._rows[start:stop])),
                torch.from_numpy(self._special[start:stop] == 1),
            )

    def _eval_bounds(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self._eval_end, EVAL_ROWS):
            yield start, min(start + EVAL_ROWS, self._eval_end)

    def training_batches(self, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Batches [batch_size, d_model] without end, from batch number `start` on; the seed fixes their order.

        Each epoch takes blocks of 64 batches in a random order and shuffles the rows within a block, so memory
        holds one block. Documents were shuffled before they were stored. A block's last, partial batch is left out.

        Raises:
            ValueError: there are fewer training tokens than one batch holds.
        """
        blocks = self._blocks(64 * batch_size)
        per_epoch = sum(tokens // batch_size for _, _, tokens in blocks)
        if per_epoch == 0:
            raise ValueError(
                f"train.n_tokens={self.n_train} gives no batch of train.batch_size={batch_size}: lower the batch "
                "size or raise the number of tokens"
            )
        epoch, skip = divmod(start, per_epoch)
        while True:
            yield from self._epoch(blocks, batch_size, np.random.default_rng((seed, epoch)), skip)
            epoch, skip = epoch + 1, 0

    def _epoch(
        self, blocks: list[tuple[int, int, int]], batch_size: int, rng: np.random.Generator, skip: int
    ) -> Iterator[Tensor]:
        for i in rng.permutation(len(blocks)):
            start, stop, tokens = blocks[i]
            n_batches = tokens // batch_size
            order = rng.permutation(tokens)[: n_batches * batch_size].reshape(n_batches, batch_size)
            if skip >= n_batches:
                skip -= n_batches
                continue
            block = self._read(start, stop)
            yield from (block[torch.from_numpy(batch)] for batch in order[skip:])
            skip = 0

    def _blocks(self, size: int) -> list[tuple[int, int, int]]:
        """(first row, end row, tokens) of the consecutive blocks of `size` rows in the training part."""
        starts = range(self._eval_end, self._train_end, size)
        bounds = [(start, min(start + size, self._train_end)) for start in starts]
        return [(start, stop, int(self._kept(start, stop).sum())) for start, stop in bounds]

    def _kept(self, start: int, stop: int) -> np.ndarray:
        """Which of rows start:stop are tokens, bool [stop - start]."""
        special = self._special[start:stop] == 1
        return np.ones_like(special) if self.special_tokens else ~special

    def _read(self, start: int, stop: int) -> Tensor:
        """The tokens among rows start:stop."""
        return torch.from_numpy(np.array(self._rows[start:stop])[self._kept(start, stop)])

    def _row_after(self, tokens: int) -> int:
        """The number of rows that hold the first `tokens` tokens."""
        remaining = tokens
        for start in range(0, len(self._special), ROWS_AT_ONCE):
            kept = np.flatnonzero(self._kept(start, start + ROWS_AT_ONCE))
            if len(kept) >= remaining:
                return start + int(kept[remaining - 1]) + 1
            remaining -= len(kept)
        raise ValueError(f"{self._rows.filename} holds {tokens - remaining} tokens, not the {tokens} asked for")
