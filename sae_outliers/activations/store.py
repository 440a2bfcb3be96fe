"""Activations on disk: for each layer a growing file of rows, shared by every run on that model and data.

`<root>/<digest>/layer_07.f16` holds rows [n, d_model] in the order of the token stream, as float16 of their distance
from a centre of each dimension, `layer_07.f16.centre` that centre and its scale (see `coding`), `layer_07.f16.flags.u1`
one byte per row (SPECIAL, DOC_START), and `layer_07.f16.json` how many rows are valid, in which shards they were
written, and the checksums of these. The JSON is replaced after a shard is written, so a killed extraction goes on from
its last whole shard; a shard is verified when it is first read. A later run that needs more tokens extends the same
files. float32 rows stand in `layer_07.f32`, `layer_07.flags.u1` and `layer_07.json`, beside the others or alone.
"""

import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_outliers.activations.coding import CENTRED_ON, Centred, Coding, Exact
from sae_outliers.utils.files import write_json
from sae_outliers.utils.prefetch import read_ahead

SPECIAL, DOC_START = 1, 2  # flags of a row: BOS, CLS and the like; the first row of its document
ROWS_AT_ONCE = 1 << 20  # flags read at a time while counting tokens
EVAL_ROWS = 4096  # rows of a chunk of evaluation tokens
BLOCK_BATCHES = 64  # training batches whose tokens are shuffled, and in memory, together


@dataclass(frozen=True)
class LayerExtent:
    """What is validly stored of a layer; by default nothing."""

    d_model: int = 0
    rows: int = 0
    tokens: int = 0  # rows that are not special
    items: int = 0  # items of the token stream that the rows come from
    shards: list[list[int]] = field(default_factory=list)  # [end row, CRC-32 of the rows, CRC-32 of the flags]


class LayerFiles:
    """The files of one layer in one dtype: float16 of what varies, or float32."""

    def __init__(self, directory: Path, layer: int, dtype: str) -> None:
        self.dtype = dtype
        self.centre_path = directory / f"layer_{layer:02d}.f16.centre"
        self.rows_path = directory / f"layer_{layer:02d}.{'f16' if self.is_centred else 'f32'}"
        begin = f"layer_{layer:02d}.f16" if self.is_centred else f"layer_{layer:02d}"
        self.flags_path = directory / f"{begin}.flags.u1"
        self.extent_path = directory / f"{begin}.json"

    @property
    def is_centred(self) -> bool:
        return self.dtype == "float16"

    @property
    def bytes_per_number(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def first_rows(self) -> int:
        """The least rows of a first shard that other rows may follow: on them all are centred."""
        return CENTRED_ON if self.is_centred else 1

    def extent(self) -> LayerExtent:
        """What is stored, as the file says now. Raises ValueError where it is damaged."""
        if not self.extent_path.is_file():
            return LayerExtent()
        try:
            return LayerExtent(**json.loads(self.extent_path.read_text()))
        except (ValueError, TypeError):
            raise ValueError(f"{self.extent_path} is damaged: {self.remedy}") from None

    @property
    def remedy(self) -> str:
        return f"delete {self.extent_path}, and the same command extracts this layer again"

    def coding(self, d_model: int) -> Coding:
        """Return how the rows were written. Raises ValueError where their centre is not on disk as it was."""
        if not self.is_centred:
            return Exact()
        try:
            return Centred.read(self.centre_path, d_model)
        except ValueError as error:
            raise ValueError(f"{error}: {self.remedy}") from None

    def append(self, rows: Tensor, flags: Tensor, items: int) -> None:
        """Add one shard: rows [n, d_model] with their flags (uint8 [n]), which come from the next `items` items.

        Raises:
            ValueError: float16 cannot hold a number beside those that the layer began with.
        """
        extent, rows, flags = self.extent(), rows.cpu(), flags.cpu()
        if self.is_centred and extent.rows == 0:  # before the first row is
            first = slice(CENTRED_ON)
            Centred.on(rows[first], flags[first] & SPECIAL == 0).write(self.centre_path)
        try:
            row_bytes = self.coding(rows.shape[1]).encode(rows)
        except OverflowError as error:
            raise ValueError(f"{self.rows_path}: {error}: add store_dtype=float32") from None
        flag_bytes = flags.numpy().astype("u1")
        _append(self.rows_path, row_bytes, extent.rows)
        _append(self.flags_path, flag_bytes, extent.rows)
        grown = LayerExtent(
            d_model=rows.shape[1],
            rows=extent.rows + len(rows),
            tokens=extent.tokens + int((flags & SPECIAL == 0).sum()),
            items=extent.items + items,
            shards=[
                *extent.shards,
                [extent.rows + len(rows), zlib.crc32(row_bytes.data), zlib.crc32(flag_bytes.data)],
            ],
        )
        write_json(self.extent_path, asdict(grown))

    def holds(self, n_eval: int, n_train: int) -> bool:
        """Whether there are so many evaluation tokens and, in the documents after them, so many training tokens."""
        extent = self.extent()
        if extent.tokens < n_eval + n_train:
            return False
        return find_split(self.flags(extent), n_eval, n_train, special_tokens=False) is not None

    def flags(self, extent: LayerExtent) -> np.ndarray:
        return np.memmap(self.flags_path, dtype="u1", mode="r", shape=(extent.rows,))


def files_of(directory: Path, layer: int, dtype: str, n_eval: int, n_train: int) -> LayerFiles:
    """Return the files that a run reads, or that are filled for it.

    Where float16 is asked for, float32 serves as well: that which holds so many tokens or, if neither does, the one
    that holds more. So what a version without float16 extracted is used and extended.
    """
    either = [LayerFiles(directory, layer, one) for one in ("float16", "float32") if one in (dtype, "float32")]
    enough = (files for files in either if files.holds(n_eval, n_train))
    return next(enough, None) or max(either, key=lambda files: files.extent().tokens)


def _append(path: Path, array: np.ndarray, rows_before: int) -> None:
    """Write `array` after the first `rows_before` rows; what a killed process left behind them is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bytes_before = rows_before * array[:1].nbytes
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(bytes_before)
        file.truncate()
        file.write(array.data)  # array.tofile tells neither of the disk nor of the file where it fails


@dataclass(frozen=True)
class Parts:
    """Rows of the two parts: evaluation is 0:eval_end, training train_start:train_end. No document is in both."""

    eval_end: int
    train_start: int
    train_end: int


def find_split(flags: np.ndarray, n_eval: int, n_train: int, special_tokens: bool) -> Parts | None:
    """Where the first `n_eval` tokens end, and `n_train` more from the next document on; None if there are too few."""
    eval_end = _row_after(flags, 0, n_eval, special_tokens)
    if eval_end is None or n_train == 0:
        return None if eval_end is None else Parts(eval_end, eval_end, eval_end)
    train_start = _next_document(flags, eval_end)
    train_end = None if train_start is None else _row_after(flags, train_start, n_train, special_tokens)
    return None if train_start is None or train_end is None else Parts(eval_end, train_start, train_end)


def _row_after(flags: np.ndarray, first: int, tokens: int, special_tokens: bool) -> int | None:
    """The end of the rows that hold the first `tokens` tokens from row `first` on."""
    remaining = tokens
    for start in range(first, len(flags), ROWS_AT_ONCE):
        kept = np.flatnonzero(is_token(flags[start : start + ROWS_AT_ONCE], special_tokens))
        if len(kept) >= remaining:
            return start + int(kept[remaining - 1]) + 1
        remaining -= len(kept)
    return None


def _next_document(flags: np.ndarray, first: int) -> int | None:
    for start in range(first, len(flags), ROWS_AT_ONCE):
        begins = np.flatnonzero(flags[start : start + ROWS_AT_ONCE] & DOC_START)
        if len(begins):
            return start + int(begins[0])
    return None


def is_token(flags: np.ndarray, special_tokens: bool) -> np.ndarray:
    """Which rows are tokens, bool [n]."""
    return np.ones(len(flags), dtype=bool) if special_tokens else flags & SPECIAL == 0


class LayerTokens:
    """The tokens of one layer that a run sees: the first `n_eval` to measure on, and `n_train` of later documents.

    Tokens come in chunks [tokens, d_model], float32 on the CPU, as the network put them out but for the rounding of
    what is stored in 16 bits. Special tokens are left
    out unless `special_tokens`.

    Raises:
        ValueError: fewer tokens are stored than asked for; or, when they are read, a shard is not what was written.
    """

    def __init__(self, files: LayerFiles, n_eval: int, n_train: int, special_tokens: bool) -> None:
        extent = files.extent()
        if extent.rows == 0:
            raise ValueError(f"no activations are stored at {files.rows_path}")
        self.d_model = extent.d_model
        self._files, self._shards, self._ends = files, extent.shards, [shard[0] for shard in extent.shards]
        self._verified: set[int] = set()
        self._coding = files.coding(extent.d_model)
        self._rows = np.memmap(files.rows_path, dtype=self._coding.dtype, mode="r", shape=(extent.rows, extent.d_model))
        self._flags = files.flags(extent)
        self.n_eval, self.n_train, self.special_tokens = n_eval, n_train, special_tokens
        parts = find_split(self._flags, n_eval, n_train, special_tokens)
        if parts is None:
            raise ValueError(
                f"{files.rows_path} holds {extent.tokens} tokens: too few for n_eval={n_eval} and, in other documents, "
                f"train.n_tokens={n_train}"
            )
        self.parts = parts

    def eval_chunks(self) -> Iterator[Tensor]:
        """The evaluation tokens, always the same and in the same order."""
        return (self._coding.decode(self._read(start, stop)) for start, stop in self._eval_bounds())

    def eval_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All stored rows [n, d_model] up to the last evaluation token, and which of them are special, bool [n]."""
        for start, stop in self._eval_bounds():
            self._verify(start, stop)
            special = self._flags[start:stop] & SPECIAL > 0
            rows = torch.from_numpy(np.array(self._rows[start:stop]))
            yield self._coding.decode(rows), torch.from_numpy(special)

    def _eval_bounds(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.parts.eval_end, EVAL_ROWS):
            yield start, min(start + EVAL_ROWS, self.parts.eval_end)

    def training_batches(self, batch_size: int, seed: int, start: int = 0, blocks_ahead: int = 0) -> Iterator[Tensor]:
        """Batches [batch_size, d_model] without end, from batch number `start` on; the seed fixes their order.

        Each epoch takes blocks of BLOCK_BATCHES batches in a random order and shuffles the rows within a block, so
        memory holds one block as it is stored, and those that a thread has read ahead. Documents were shuffled before they were
        stored. A block's last, partial batch is left out.

        Raises:
            ValueError: there are fewer training tokens than one batch holds.
        """
        blocks = self._blocks(BLOCK_BATCHES * batch_size)
        per_epoch = sum(tokens // batch_size for _, _, tokens in blocks)
        if per_epoch == 0:
            raise ValueError(
                f"train.n_tokens={self.n_train} gives no batch of train.batch_size={batch_size}: lower the batch "
                "size or raise the number of tokens"
            )
        ordered = self._in_order(blocks, batch_size, seed, *divmod(start, per_epoch))
        read = ((self._read(*bounds), torch.from_numpy(batches)) for bounds, batches in ordered)
        for block, batches in read_ahead(read, blocks_ahead) if blocks_ahead else read:
            yield from (self._coding.decode(block.index_select(0, batch)) for batch in batches)
            del block  # before the next is read

    def _in_order(
        self, blocks: list[tuple[int, int, int]], batch_size: int, seed: int, epoch: int, skip: int
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yield the rows of each block in the order of training, with its tokens for each batch, [batches, batch_size].

        The first `skip` batches of epoch `epoch` are left out.
        """
        while True:
            rng = np.random.default_rng((seed, epoch))
            for i in rng.permutation(len(blocks)):
                start, stop, tokens = blocks[i]
                n_batches = tokens // batch_size
                order = rng.permutation(tokens)[: n_batches * batch_size].reshape(n_batches, batch_size)
                if skip < n_batches:
                    yield (start, stop), order[skip:]
                skip = max(0, skip - n_batches)
            epoch += 1

    def _blocks(self, size: int) -> list[tuple[int, int, int]]:
        """(first row, end row, tokens) of the consecutive blocks of `size` rows in the training part."""
        starts = range(self.parts.train_start, self.parts.train_end, size)
        bounds = [(start, min(start + size, self.parts.train_end)) for start in starts]
        return [(start, stop, int(self._kept(start, stop).sum())) for start, stop in bounds]

    def _kept(self, start: int, stop: int) -> np.ndarray:
        return is_token(self._flags[start:stop], self.special_tokens)

    def _read(self, start: int, stop: int) -> Tensor:
        """The tokens among rows start:stop, as they are stored."""
        self._verify(start, stop)
        rows, kept = self._rows[start:stop], self._kept(start, stop)
        return torch.from_numpy(np.array(rows) if kept.all() else np.asarray(rows[kept]))  # one copy in memory

    def _verify(self, start: int, stop: int) -> None:
        """Compare the shards that hold rows start:stop with their checksums, each once."""
        for shard in range(bisect_right(self._ends, start), bisect_right(self._ends, stop - 1) + 1):
            if shard in self._verified:
                continue
            first, (end, rows_crc, flags_crc) = self._ends[shard - 1] if shard else 0, self._shards[shard]
            found = zlib.crc32(self._rows[first:end].data), zlib.crc32(self._flags[first:end].data)
            if found != (rows_crc, flags_crc):
                raise ValueError(
                    f"rows {first} to {end} of {self._files.rows_path} are not what was written there: "
                    f"{self._files.remedy}"
                )
            self._verified.add(shard)
