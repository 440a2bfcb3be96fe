"""Activations stored by other programs, as documents (activation_files.py says of which files)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_outliers.data.activation_files import READERS, pieces_of, supported, unsupported_message
from sae_outliers.data.layered import LAYER, layer_paths, refuse_pooled_layers, saev_layers
from sae_outliers.data.reading import Tolerance
from sae_outliers.data.selection import Piece, Selection

log = logging.getLogger(__name__)

SIGNIFICAND_BITS = {torch.float16: 11, torch.bfloat16: 8}
MAX_ZERO_ROWS = 0.01  # rows that are all zero are padding above this fraction, unless it is said that they are not

Document = dict[int, Tensor]  # [tokens, d_model] of each layer, by its number
Source = tuple[Path, Piece]


@dataclass(frozen=True)
class StoredArrays:
    """A source of documents [tokens, d_model], float32, in an order determined by the seed.

    Attributes:
        path: a file, or a folder with files at any depth; with `{layer}` for the number of a layer, a document has the
            tokens of each layer, and so it has of saev's shards of several layers.
        key: the name of the array in a file with several, or of the list column of a table; a glob pattern or a list of
            names makes each array a document, and each column of a table a dimension. None if there is only one.
        pattern: glob pattern for the names of files in a folder.
        mask: the name of an array or column that is true at tokens, or an npy file with it; None: an array `mask` or
            `attention_mask` beside the others, if there is one; `none`: no mask.
        zeros: what rows are that are all zero: `keep` for tokens, `drop` for padding; None: many are refused.
        on_error: what to do with a file that cannot be read: `skip` or, as with None, `refuse`.
        shape: of a file without a header; the first may be -1.
        dtype: of a file without a header.
    """

    path: str | None
    key: str | Sequence[str] | None = None
    pattern: str = "*"
    mask: str | None = None
    zeros: str | None = None
    on_error: str | None = None
    shape: Sequence[int] | None = None
    dtype: str | None = None

    def __call__(self, seed: int) -> Iterator[Any]:
        """Return an iterator over the documents. The pieces of all files are shuffled together, where a piece is an npz
        or arrow file, a row group of a parquet file, or a document of another file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an array is missing, or has an unsupported shape or type, non-finite values, or another width
                than the first; a file cannot be read; layers differ in their documents.
        """
        if self.zeros not in (None, "keep", "drop"):
            raise ValueError(f"data.source.zeros={self.zeros} does not exist: use keep or drop")
        tolerance = Tolerance(self.on_error)
        layers = self._layers(tolerance)
        documents = _checked(_unpadded(_shuffled(layers, np.random.default_rng(seed), tolerance), self.zeros))
        is_layered = LAYER in str(self.path) or len(layers) > 1
        return documents if is_layered else (document[0] for document in documents)

    def files(self) -> list[Path]:
        """Return the files to read. Raise FileNotFoundError or ValueError as `__call__` does."""
        if self.path is None:
            raise ValueError("no stored activations are named: add path=<file or folder>")
        path = Path(self.path).expanduser()
        found = self._files_at(path)
        if path.is_dir():
            refuse_pooled_layers(path, found)
        return found

    def _files_at(self, path: Path) -> list[Path]:
        if path.is_file() and not supported(path):
            raise ValueError(unsupported_message(path))
        found = [path] if path.is_file() else sorted(f for f in path.rglob(self.pattern) if supported(f))
        if not found and path.is_dir() and (other := next((f for f in path.rglob("*") if f.is_file()), None)):
            raise FileNotFoundError(f"{path} has no {self.pattern} file that is read: {unsupported_message(other)}")
        if not found:
            raise FileNotFoundError(
                f"{path} is neither a file nor a folder with {self.pattern} files ({', '.join(READERS)})"
            )
        return found

    def _sources(
        self, files: Sequence[Path], tolerance: Tolerance, key: str | Sequence[str] | None = None
    ) -> list[Source]:
        if self.mask and self.mask.endswith(".npy") and len(files) > 1:
            raise ValueError(f"data.source.mask={self.mask} masks one file, but there are {len(files)}")
        selection = Selection(key or self.key, self.mask, self.shape, self.dtype)
        return [
            (file, piece)
            for file in files
            for piece in tolerance.attempt(lambda file=file: iter(pieces_of(file, selection)))  # type: ignore[misc]
        ]

    def _layers(self, tolerance: Tolerance) -> dict[int, list[Source]]:
        """Return the sources of each layer by its number."""
        if LAYER not in str(self.path):
            files = self.files()
            several = saev_layers(Path(str(self.path)).expanduser()) if self.key is None else []
            if len(several) > 1:
                return {number: self._sources(files, tolerance, str(number)) for number in several}
            return {0: self._sources(files, tolerance)}
        places = layer_paths(str(self.path))
        layers = {number: self._sources(self._files_at(place), tolerance) for number, place in places.items()}
        _require_equal({number: f"{len(sources)} pieces" for number, sources in layers.items()}, str(self.path))
        return layers


def _shuffled(
    layers: Mapping[int, Sequence[Source]], rng: np.random.Generator, tolerance: Tolerance
) -> Iterator[tuple[Path, Document]]:
    """Yield each document with a file that it is from, in one random order for all layers."""
    first = next(iter(layers.values()))
    if not first:
        raise ValueError(f"none of the files could be read: {tolerance.skipped} were skipped")
    for i in rng.permutation(len(first)):
        # layers whose pieces draw from one generator would not stay side by side
        same = int(rng.integers(2**63)) if len(layers) > 1 else None
        rngs = [rng if same is None else np.random.default_rng(same) for _ in layers]
        pieces = [sources[i][1] for sources in layers.values()]
        file = first[i][0]
        for document in tolerance.attempt(partial(_side_by_side, list(layers), pieces, rngs, file)):
            yield file, document


def _side_by_side(
    numbers: Sequence[int], pieces: Sequence[Piece], rngs: Sequence[np.random.Generator], file: Path
) -> Iterator[Document]:
    readers = [piece(rng) for piece, rng in zip(pieces, rngs, strict=True)]
    for tokens in zip_longest(*readers):
        if any(rows is None for rows in tokens):
            raise ValueError(f"{file} has another number of documents than the same file of another layer")
        document = dict(zip(numbers, tokens, strict=True))
        _require_equal({number: f"{len(rows)} tokens" for number, rows in document.items()}, str(file))
        yield document


def _require_equal(counts: Mapping[int, str], where: str) -> None:
    first, *others = counts.items()
    for other in others:
        if other[1] != first[1]:
            raise ValueError(
                f"{where}: layer {first[0]} has {first[1]} where layer {other[0]} has {other[1]}, but all layers have "
                "to hold the same documents"
            )


class AlphaFold3Outputs(StoredArrays):
    """A source of AlphaFold 3's single representations: a document for each job and seed, stored as float16.

    `run_alphafold.py --save_embeddings=true` writes `<job>/seed-<n>_embeddings/<job>_seed-<n>_embeddings.npz`, or
    `embeddings.npz` in its first releases, with `single_embeddings` [tokens, 384] and `pair_embeddings`.
    """

    def __init__(self, path: str | None, on_error: str | None = None) -> None:
        super().__init__(path, key="single_embeddings", pattern="*embeddings.npz", on_error=on_error)

    def files(self) -> list[Path]:
        """Return the files to read; an error adds how to make AlphaFold 3 write them."""
        try:
            if self.path is None:
                return super().files()
            return self._files_at(Path(self.path).expanduser())
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{error}; AlphaFold 3 writes them when run with --save_embeddings=true") from error


def _unpadded(documents: Iterator[tuple[Path, Document]], zeros: str | None) -> Iterator[tuple[Path, Document]]:
    """Yield the documents, those of `zeros=drop` without rows that are zero in every layer.

    Raise ValueError if such rows are many and nothing is said about them.
    """
    seen = empty = 0
    for file, document in documents:
        is_empty = torch.stack([(rows.float() == 0).all(1) for rows in document.values()]).all(0)
        if zeros == "drop":
            document = {number: rows[~is_empty] for number, rows in document.items()}
        seen, empty = seen + len(is_empty), empty + int(is_empty.sum())
        if zeros is None and empty > MAX_ZERO_ROWS * seen:
            raise ValueError(
                f"{empty} of the first {seen} rows are all zero, up to one in {file}: name what says which rows are "
                "tokens by data.source.mask=, or, without such a mask, add data.source.zeros=drop if they are padding"
                " or data.source.zeros=keep if they are tokens"
            )
        if len(next(iter(document.values()))):  # nothing is left of a document that is padding throughout
            yield file, document


def _checked(documents: Iterator[tuple[Path, Document]]) -> Iterator[Document]:
    """Yield the documents in float32, with one warning if any has 16 bits. Raise ValueError as `StoredArrays` does."""
    firsts: dict[int, tuple[Path, int]] = {}
    warned = False
    for file, document in documents:
        for number, rows in document.items():
            first = firsts.setdefault(number, (file, rows.shape[1]))
            if rows.shape[1] != first[1]:
                raise ValueError(f"{file} has tokens of width {rows.shape[1]}, but {first[0]} of {first[1]}")
            if (bits := SIGNIFICAND_BITS.get(rows.dtype)) and not warned:
                warned = True
                log.warning(
                    "%s has %d significant bits per value: where |μ|/σ of a dimension exceeds about %d, its variation "
                    "was lost in rounding, and γ and the dead features may differ from the network's",
                    file, bits, 2**bits,
                )  # fmt: skip
            _require_finite(rows.float(), file)
        yield {number: rows.float() for number, rows in document.items()}


def _require_finite(rows: Tensor, file: Path) -> None:
    if not rows.isfinite().all():
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"{file} contains {rows[row, column]}, in row {row} of {len(rows)} of a document, column {column}"
        )
