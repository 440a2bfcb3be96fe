"""The files of one layer on disk, and how they grow: float32 rows first, and where these end, float16 ones.

`layer_07.f32` holds rows [n, d_model] in the order of the token stream, `layer_07.flags.u1` one byte per row (SPECIAL,
DOC_START), and `layer_07.json` how many rows are valid, in which shards they were written, and the checksums of these.
The JSON is replaced after a shard is written, so a killed extraction goes on from its last whole shard.

`layer_07.f16` goes on where the float32 rows ended when it was begun, with `layer_07.f16.flags.u1` (of all rows from
the first), `layer_07.f16.json` and the centre and scale of each dimension in `layer_07.f16.centre`. If float32 rows
are added later, they are the ones that are read. What a version without float16 stored is such a layer as well.
"""

import json
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy

from sae_outliers.activations.coding import CENTRED_ON, Centred, Coding, Exact
from sae_outliers.activations.split import SPECIAL, find_split
from sae_outliers.utils.files import write_json


@dataclass(frozen=True)
class LayerExtent:
    """What is validly stored of a layer; by default nothing. Counts include the float32 rows before float16 ones."""

    d_model: int = 0
    rows: int = 0
    tokens: int = 0  # rows that are not special
    items: int = 0  # items of the token stream that the rows come from
    # [end row, CRC-32 of the rows, CRC-32 of the flags]; the first of float16 rows are the flags of those before
    shards: list[list[int]] = field(default_factory=list)
    begins: int = 0  # rows before the first that is stored here


class LayerFiles:
    """The files of one layer in one dtype."""

    def __init__(self, directory: Path, layer: int, dtype: str) -> None:
        self.dtype = dtype
        exact, centred = f"layer_{layer:02d}", f"layer_{layer:02d}.f16"
        name = centred if self.is_centred else exact
        self.rows_path = directory / (centred if self.is_centred else f"{exact}.f32")
        self.flags_path = directory / f"{name}.flags.u1"
        self.extent_path = directory / f"{name}.json"
        self.centre_path = directory / f"{centred}.centre"

    @property
    def is_centred(self) -> bool:
        return self.dtype == "float16"

    @property
    def remedy(self) -> str:
        return f"delete {self.extent_path}, and the same command extracts this layer again"

    def extent(self) -> LayerExtent:
        """What is stored, as the file says now. Raises ValueError where it is damaged."""
        if not self.extent_path.is_file():
            return LayerExtent()
        try:
            return LayerExtent(**json.loads(self.extent_path.read_text()))
        except (ValueError, TypeError):
            raise ValueError(f"{self.extent_path} is damaged: {self.remedy}") from None

    def coding(self, d_model: int) -> Coding:
        """Return how the rows are written. Raises ValueError where their centre is not on disk as it was."""
        if not self.is_centred:
            return Exact()
        try:
            return Centred.read(self.centre_path, d_model)
        except ValueError as error:
            raise ValueError(f"{error}: {self.remedy}") from None

    def append(self, rows: Tensor, flags: Tensor, items: int) -> None:
        """Add one shard: rows [n, d_model] with their flags (uint8 [n]), which come from the next `items` items.

        Raises:
            ValueError: a number is too far from its centre for float16.
        """
        extent = self.extent()
        try:
            row_bytes = self.coding(rows.shape[1]).encode(rows.cpu())
        except OverflowError as error:
            raise ValueError(f"{self.rows_path}: {error}: add store_dtype=float32") from None
        flag_bytes = flags.cpu().numpy().astype("u1")
        _append(self.rows_path, row_bytes, extent.rows - extent.begins)
        _append(self.flags_path, flag_bytes, extent.rows)
        shard = [extent.rows + len(rows), zlib.crc32(row_bytes.data), zlib.crc32(flag_bytes.data)]
        self._write(
            LayerExtent(
                d_model=rows.shape[1],
                rows=extent.rows + len(rows),
                tokens=extent.tokens + int((flags & SPECIAL == 0).sum()),
                items=extent.items + items,
                shards=[*extent.shards, shard],
                begins=extent.begins,
            )
        )

    def begin_after(self, exact: "LayerFiles") -> None:
        """Begin float16 rows where the float32 ones end, centred on the first of these."""
        opened = OpenFiles(exact)
        opened.verify(0, opened.extent.rows)  # else a copy of damaged flags would pass for what was written
        first = min(CENTRED_ON, opened.extent.rows)
        ordinary = from_numpy(opened.flags[:first] & SPECIAL == 0)
        Centred.on(from_numpy(np.array(opened.rows(0, first))), ordinary).write(self.centre_path)
        _append(self.flags_path, opened.flags, 0)
        before = opened.extent
        shard = [before.rows, zlib.crc32(b""), zlib.crc32(opened.flags.data)]
        self._write(LayerExtent(before.d_model, before.rows, before.tokens, before.items, [shard], before.rows))

    def _write(self, extent: LayerExtent) -> None:
        content = asdict(extent)
        if not self.is_centred:
            del content["begins"]  # which versions without float16 do not know
        write_json(self.extent_path, content)

    def holds(self, n_eval: int, n_train: int) -> bool:
        """Whether there are so many evaluation tokens and, in the documents after them, so many training tokens."""
        extent = self.extent()
        if extent.tokens < n_eval + n_train:
            return False
        return find_split(self.flags(extent), n_eval, n_train, special_tokens=False) is not None

    def flags(self, extent: LayerExtent) -> np.ndarray:
        return np.memmap(self.flags_path, dtype="u1", mode="r", shape=(extent.rows,))


def _append(path: Path, array: np.ndarray, rows_before: int) -> None:
    """Write `array` after the first `rows_before` rows; what a killed process left behind them is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bytes_before = rows_before * array[:1].nbytes
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(bytes_before)
        file.truncate()
        file.write(array.data)  # array.tofile tells neither of the disk nor of the file where it fails


class StoredLayer:
    """Both files of a layer. Evaluation tokens are float32; training tokens are, or go on in float16."""

    def __init__(self, directory: Path, layer: int) -> None:
        self.number = layer
        self.exact = LayerFiles(directory, layer, "float32")
        self.rest = LayerFiles(directory, layer, "float16")

    def holds(self, dtype: str, n_eval: int, n_train: int) -> bool:
        """Whether so many tokens are stored, as of `LayerFiles`, all or only the evaluation tokens in float32."""
        if self.exact.holds(n_eval, n_train):
            return True
        return dtype == "float16" and self.is_joined(n_eval) and self.rest.holds(n_eval, n_train)

    def is_joined(self, n_exact: int) -> bool:
        """Whether so many tokens are float32, and float16 rows, if there are any, follow without a gap."""
        exact = self.exact.extent()
        return exact.tokens >= n_exact and exact.rows >= self.rest.extent().begins

    def begin_rest(self) -> None:
        """Begin float16 rows, unless there are some beyond the float32 ones."""
        if self.rest.extent().rows <= self.exact.extent().rows:
            self.rest.begin_after(self.exact)

    def files(self, part: str) -> LayerFiles:
        return self.exact if part == "exact" else self.rest

    def open(self, n_eval: int, n_train: int) -> "list[OpenFiles]":
        """Return what so many tokens are read from: float32 rows, then float16 ones if those are too few.

        Raises:
            ValueError: nothing is stored.
        """
        if self.exact.extent().rows == 0:
            raise ValueError(f"no activations are stored at {self.exact.rows_path}")
        goes_on = self.rest.extent().rows > self.exact.extent().rows and self.is_joined(n_eval)
        if self.exact.holds(n_eval, n_train) or not goes_on:
            return [OpenFiles(self.exact)]
        return [OpenFiles(self.exact), OpenFiles(self.rest)]


class OpenFiles:
    """What is stored of a layer in one dtype, to be read; a shard is verified before its first row is used."""

    def __init__(self, files: LayerFiles) -> None:
        self.files, self.extent = files, files.extent()
        self.coding = files.coding(self.extent.d_model)
        self.flags = files.flags(self.extent)
        shape = (self.extent.rows - self.extent.begins, self.extent.d_model)
        self._rows = np.memmap(files.rows_path, dtype=self.coding.dtype, mode="r", shape=shape)
        self._ends = [shard[0] for shard in self.extent.shards]
        self._verified: set[int] = set()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start:stop of the layer as they are stored."""
        return self._rows[max(0, start - self.extent.begins) : max(0, stop - self.extent.begins)]

    def verify(self, start: int, stop: int) -> None:
        """Compare the shards that hold rows start:stop with their checksums, each once.

        Raises:
            ValueError: one is not what was written.
        """
        for shard in range(bisect_right(self._ends, start), bisect_right(self._ends, stop - 1) + 1):
            if shard in self._verified:
                continue
            first, (end, rows_crc, flags_crc) = self._ends[shard - 1] if shard else 0, self.extent.shards[shard]
            found = zlib.crc32(self.rows(first, end).data), zlib.crc32(self.flags[first:end].data)
            if found != (rows_crc, flags_crc):
                raise ValueError(
                    f"rows {first} to {end} of {self.files.rows_path} are not what was written there: "
                    f"{self.files.remedy}"
                )
            self._verified.add(shard)
