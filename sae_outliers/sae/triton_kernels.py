"""The products with a sparse code as Triton kernels, for CUDA; `kernels.py` has the readable form of each.

A code is CSR: entry e is of feature indices[e], and the entries of row r are offsets[r] to offsets[r + 1]. Terms are
multiplied and summed in their own type (no TF32), in an order that does not vary (no atomics): results repeat exactly.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch brings triton along only where it comes with CUDA
    INSTALLED = False
else:
    INSTALLED = True

# A program reads W in tiles of so many gathered rows by so many columns, 32 elements to a thread: enough in flight at
# once to hide the latency, and registers left for other programs to hide the rest.
PRODUCTS_TILE = (32, 128)
WEIGHTED_ROWS_TILE = (16, 256)


def usable(tensor: Tensor) -> bool:
    """Return whether the kernels can be launched on operands like this one."""
    return tensor.is_cuda and tensor.dtype in (torch.float32, torch.float64) and _launchable(tensor.device)


def products(x: Tensor, W: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """Return x[r] · W[j] for each entry (r, j), [entries]; x is [rows, d], W [n, d]."""
    x, W = _unit_stride(x), _unit_stride(W)
    out, rows, d = x.new_empty(len(indices)), len(offsets) - 1, W.shape[1]
    code, strides = (indices.contiguous(), offsets.contiguous()), (x.stride(0), W.stride(0))
    with torch.cuda.device_of(W):  # Triton launches on the current device
        _products[(rows,)](x, W, *code, out, *strides, d, *_tile(PRODUCTS_TILE, d), num_warps=4)
    return out


def weighted_rows(values: Tensor, indices: Tensor, offsets: Tensor, W: Tensor) -> Tensor:
    """Return the sum of values[e] * W[indices[e]] over each row's entries, [rows, d]; W is [n, d]."""
    W = _unit_stride(W)
    rows, d = len(offsets) - 1, W.shape[1]
    out = W.new_empty(rows, d)
    code = values.contiguous(), indices.contiguous(), offsets.contiguous()
    tile = _tile(WEIGHTED_ROWS_TILE, d)
    # rows vary fastest in the grid: all of them meet one slice of W's columns, which stays in the L2 cache meanwhile
    grid = rows, triton.cdiv(d, tile[1])
    with torch.cuda.device_of(W):
        _weighted_rows[grid](*code, W, out, W.stride(0), d, *tile, num_warps=4)
    return out


def _tile(largest: tuple[int, int], d: int) -> tuple[int, int]:
    return largest[0], min(largest[1], triton.next_power_of_2(d))


def _unit_stride(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


@cache
def _launchable(device: torch.device) -> bool:
    """Return False without Triton or, with a warning, where it cannot build kernels (no C compiler, an old GPU).

    The probe runs on the GPU in question: on another one it would open a context there. Memory that is short now says
    nothing about Triton.
    """
    if not INSTALLED:
        return False
    try:
        offsets, one = torch.tensor([0, 1], device=device), torch.ones(1, 1, device=device)
        weighted_rows(one[0], offsets[:1], offsets, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        warnings.warn(f"Triton's kernels fail here, so torch's slower ones are used: {error!r}", stacklevel=2)
        return False
    return True


if INSTALLED:

    @triton.jit
    def _products(
        x: tl.tensor, W: tl.tensor, indices: tl.tensor, offsets: tl.tensor, out: tl.tensor,
        x_stride: tl.tensor, W_stride: tl.tensor,
        d: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
    ) -> None:  # fmt: skip
        """A program per row."""
        row = tl.program_id(0).to(tl.int64)
        last = tl.load(offsets + row + 1)
        for first in range(tl.load(offsets + row), last, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            of_row = entry < last
            index = tl.load(indices + entry, mask=of_row, other=0)
            total = tl.zeros([ENTRIES, COLUMNS], out.dtype.element_ty)
            for left in range(0, d, COLUMNS):
                column = left + tl.arange(0, COLUMNS)
                x_part = tl.load(x + row * x_stride + column, mask=column < d, other=0)
                inside = of_row[:, None] & (column < d)[None, :]
                W_part = tl.load(W + index[:, None] * W_stride + column[None, :], mask=inside, other=0)
                total += x_part[None, :] * W_part
            tl.store(out + entry, tl.sum(total, 1), mask=of_row)

    @triton.jit
    def _weighted_rows(
        values: tl.tensor, indices: tl.tensor, offsets: tl.tensor, W: tl.tensor, out: tl.tensor, W_stride: tl.tensor,
        d: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
    ) -> None:  # fmt: skip
        """A program per row and slice of columns."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        last = tl.load(offsets + row + 1)
        # a sum for each place in the tile, so that entries are added up across threads once, at the end
        total = tl.zeros([ENTRIES, COLUMNS], out.dtype.element_ty)
        for first in range(tl.load(offsets + row), last, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            of_row = entry < last
            value = tl.load(values + entry, mask=of_row, other=0)
            index = tl.load(indices + entry, mask=of_row, other=0)
            inside = of_row[:, None] & (column < d)[None, :]
            total += value[:, None] * tl.load(W + index[:, None] * W_stride + column[None, :], mask=inside, other=0)
        tl.store(out + row * d + column, tl.sum(total, 0), mask=column < d)
