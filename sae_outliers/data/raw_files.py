"""Readers of files that hold numbers and nothing else, such as np.memmap writes, and of saev's shards."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_outliers.data.array_files import Array, array_pieces, only_array
from sae_outliers.data.reading import reading
from sae_outliers.data.selection import Piece, Selection

BFLOAT16 = np.dtype("V2")  # what NumPy makes of JAX's bfloat16
SAEV_PATCHES = ("patches_per_ex", "content_tokens_per_example", "n_patches_per_img")  # by the protocol's version


def read_raw(file: Path, selection: Selection) -> list[Piece]:
    """Read a file of numbers and nothing else, such as np.memmap writes, or one of saev's shards."""
    if (file.parent / "shards.json").is_file() and (file.parent / "metadata.json").is_file():
        return array_pieces(file, [_saev(file, selection)])
    if not selection.shape or not selection.dtype:
        raise ValueError(
            f"{file} does not say what it holds: add data.source.shape=[tokens,d_model] (-1: as many as there are) "
            "and data.source.dtype=float32"
        )
    array = _mapped(file, selection.dtype, selection.shape)
    return array_pieces(file, [only_array(file, array, selection)])


def _mapped(file: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    try:
        kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    except TypeError as error:
        raise ValueError(
            f"data.source.dtype={dtype} is not known, for {file}: use float32, float16, bfloat16"
        ) from error
    size, row = file.stat().st_size, kind.itemsize * math.prod(shape[1:])
    wanted = [size // row if row > 0 and shape[0] == -1 else shape[0], *shape[1:]]
    if min(wanted) < 1 or kind.itemsize * math.prod(wanted) != size:
        raise ValueError(
            f"{file} has {size} bytes, which is not shape {list(shape)} of {dtype}: it is cut short, or "
            "data.source.shape= and dtype= are not what was written"
        )
    return np.memmap(file, kind, "r", shape=tuple(wanted))


def _saev(file: Path, selection: Selection) -> Array:
    """Return one layer of a shard [examples, layers, tokens, d_model]: the layer that data.source.key= names."""
    with reading(file.parent / "metadata.json"):
        about = json.loads((file.parent / "metadata.json").read_text())
        layers = about["layers"]
        patches = next(about[name] for name in SAEV_PATCHES if name in about)
        d_model = next(about[name] for name in ("d_model", "d_vit") if name in about)
        inner = [len(layers), int(patches) + bool(about["cls_token"]), int(d_model)]
    key = layers[0] if selection.key is None and len(layers) == 1 else selection.key
    if str(key) not in map(str, layers):
        raise ValueError(f"{file} holds the layers {', '.join(map(str, layers))}: name one by data.source.key=")
    held = _mapped(file, str(about.get("dtype", "float32")), [-1, *inner])[:, list(map(str, layers)).index(str(key))]
    return only_array(file, held, selection)
