"""How rows of activations become numbers on disk, and rows again: as they are, or in half the bytes what varies.

bfloat16 or float16 of an activation lose the variation of a dimension with |μ|/σ > 250 or 2,000, which is what is
studied here. float16 of its distance from the dimension's centre does not: it keeps eleven binary digits of that.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sae_outliers.utils.files import atomic_write

DTYPES = ("float16", "float32")  # as settings name them; beside the former, a centre and a scale of each dimension
CENTRED_ON = 1024  # rows, the first of a layer, that give centre and scale; they are float32 themselves
# float16 has 30 powers of two, so the deviation of the first rows is put far below its largest number, 65,504
HEADROOM = 64  # times the mean deviation from the centre that is scaled to 1: 4 million of it do not overflow
FLOOR = 256  # and, in a dimension that hardly varies in the first rows, 256 times the largest value of any


class Coding(Protocol):
    """What rows [n, d_model] are on disk; `dtype` is NumPy's name of it."""

    dtype: str

    def encode(self, rows: Tensor) -> np.ndarray:
        """Return what is written of float32 rows on the CPU."""

    def decode(self, stored: Tensor) -> Tensor:
        """Return float32 rows of what was written."""


class Exact:
    """float32 as it is."""

    dtype = "<f4"

    def encode(self, rows: Tensor) -> np.ndarray:
        return np.ascontiguousarray(rows.numpy(), dtype=self.dtype)

    def decode(self, stored: Tensor) -> Tensor:
        return stored


@dataclass(frozen=True)
class Centred:
    """float16 of (x - centre) / scale; both are float32 [d_model].

    Scales are powers of two, so that what is read, centre + scale × stored, is rounded once, and alike on every
    machine. It is off from x by at most 2^-11 |x - centre|, or 2^-25 scale where that is more, and float32's rounding.
    """

    centre: Tensor
    scale: Tensor
    dtype = "<f2"

    @classmethod
    def on(cls, rows: Tensor, ordinary: Tensor) -> "Centred":
        """Return the coding for a layer that begins with these rows [n, d_model]; `ordinary` (bool [n]): not special.

        The centre is their median, which a token with massive activations does not move.
        """
        finite = torch.where(rows.isfinite(), rows, torch.nan)
        seen = finite[ordinary] if ordinary.any() else finite
        centre = seen.nanmedian(0).values.nan_to_num(0)
        deviation = (seen - centre).abs().nanmean(0).nan_to_num(0)
        least = finite.abs().nan_to_num(0).max() / FLOOR
        scale = torch.maximum(HEADROOM * deviation, least).log2().ceil().clamp(-100, 100).exp2()
        return cls(centre, scale if least > 0 else torch.ones_like(scale))

    def encode(self, rows: Tensor) -> np.ndarray:
        """Raise OverflowError where a number is too large for float16: it is neither cut off nor made infinite."""
        stored = (rows - self.centre).div_(self.scale).half()
        if not stored.isfinite().all():  # as the network put it out, or by overflow
            rows_of, dimensions = (stored.isinf() & rows.isfinite()).nonzero(as_tuple=True)
            if len(rows_of):
                value, i = rows[rows_of[0], dimensions[0]].item(), int(dimensions[0])
                raise OverflowError(f"{value:.3g} in dimension {i} is too far from its centre, {self.centre[i]:.3g}")
        return stored.numpy().astype(self.dtype, copy=False)

    def decode(self, stored: Tensor) -> Tensor:
        rows = stored.float()
        return torch.addcmul(self.centre, rows, self.scale, out=rows)  # in place: a pass less over the memory

    def write(self, path: Path) -> None:
        """Write centre and scale, float32 [2, d_model], and after them the CRC-32 of both."""
        content = torch.stack([self.centre, self.scale]).numpy().astype("<f4").tobytes()
        with atomic_write(path) as beside:
            beside.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))

    @classmethod
    def read(cls, path: Path, d_model: int) -> "Centred":
        """Raise ValueError where the file is missing, or not what was written."""
        content = path.read_bytes() if path.is_file() else b""
        numbers, checksum = content[:-4], content[-4:]
        if len(numbers) != 8 * d_model or zlib.crc32(numbers).to_bytes(4, "little") != checksum:
            raise ValueError(f"{path} is missing or not what was written there")
        centre, scale = torch.from_numpy(np.frombuffer(numbers, "<f4").reshape(2, d_model).astype(np.float32))
        return cls(centre, scale)
