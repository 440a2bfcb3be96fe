"""The tokens that a diagnosis is made of: from whatever holds activations to one float32 tensor [tokens, d_model].

At most as many are held as the caller asks for, so memory does not grow with the data. Of a tensor or array they are
spread evenly over it, for a corpus may be in some order; of a stream they are the first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gather(activations: Any, mask: Any, limit: int) -> Tensor:
    """Return at most `limit` tokens, float32 [tokens, d_model] on the CPU.

    `activations` is a tensor or array [tokens, d_model] or [batch, tokens, d_model], or an iterable of such, as a
    DataLoader is; its elements may be tuples, of which the first entry counts, and the second as a mask where it is
    bool. `mask` is bool [batch, tokens] or [tokens], True at tokens.

    Raises:
        TypeError: it is none of these.
        ValueError: there is nothing, another shape or width, a mask of another shape, or a value that is not finite.
    """
    if isinstance(activations, str):
        raise TypeError(f"{activations!r} is a name: of files and models, python -m sae_outliers.diagnose reads them")
    if _is_array(activations):
        return _finite(_spread(activations, mask, limit))
    if not isinstance(activations, Iterable) or isinstance(activations, Mapping):
        raise TypeError(
            f"activations are a {type(activations).__name__}: give a tensor or array [tokens, d_model] or "
            "[batch, tokens, d_model], or an iterable of them"
        )
    if mask is not None:
        raise ValueError("mask is for one tensor: of an iterable, let each element be a pair of activations and mask")
    return _finite(_first(activations, limit))


def _first(chunks: Iterable[Any], limit: int) -> Tensor:
    """Return the first tokens of chunks, and read no more of them than that takes."""
    found: list[Tensor] = []
    left = limit
    for number, element in enumerate(chunks):
        chunk, mask = _parts(element, number)
        rows = _rows(chunk, mask)[:left]
        if found and rows.shape[1] != found[0].shape[1]:
            raise ValueError(
                f"chunk {number} has tokens of width {rows.shape[1]}, but the first of {found[0].shape[1]}"
            )
        found.append(_float32(rows))
        left -= len(rows)
        if left <= 0:
            break
    if not found:
        raise ValueError("there are no activations: the iterable is empty (a generator can be read only once)")
    return torch.cat(found)


def _parts(element: Any, number: int) -> tuple[Any, Any]:
    """Return the activations of an element of a stream, and its mask or None."""
    if _is_array(element):
        return element, None
    if isinstance(element, tuple | list) and element and _is_array(element[0]):
        second = element[1] if len(element) > 1 else None
        is_mask = isinstance(second, Tensor | np.ndarray) and str(second.dtype) in ("bool", "torch.bool")
        return element[0], second if is_mask else None
    raise TypeError(
        f"chunk {number} is a {type(element).__name__}: make it a tensor or array [tokens, d_model] or "
        "[batch, tokens, d_model], or a tuple that begins with one"
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _places(array: Any, mask: Any) -> Any:
    """Return where the tokens are in an array whose leading dimensions are flattened, int64 [tokens], or a range."""
    if array.ndim not in (2, 3):
        raise ValueError(
            f"activations have the shape {list(array.shape)}: [tokens, d_model] or [batch, tokens, d_model] is needed"
        )
    if mask is None:
        return np.arange(int(np.prod(array.shape[:-1])))
    flags = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if flags.shape != tuple(array.shape[:-1]):
        raise ValueError(f"the mask has the shape {list(flags.shape)}, but the tokens are {list(array.shape[:-1])}")
    return flags.astype(bool).reshape(-1).nonzero()[0]


def _rows(array: Any, mask: Any) -> Any:
    flat = array.reshape(-1, array.shape[-1]) if array.ndim in (2, 3) else array
    places = _places(array, mask)
    return flat if len(places) == len(flat) else flat[places]


def _spread(array: Any, mask: Any, limit: int) -> Tensor:
    """Return tokens from all over the array; of one on the disk no more is read."""
    places = _places(array, mask)
    if not len(places):
        raise ValueError("there are no tokens: the array is empty, or its mask is False everywhere")
    if len(places) > limit:
        places = places[np.linspace(0, len(places) - 1, limit).astype(np.int64)]
    flat = array.reshape(-1, array.shape[-1])
    return _float32(flat[places if isinstance(array, np.ndarray) else torch.from_numpy(places).to(array.device)])


def _float32(rows: Any) -> Tensor:
    tensor = rows.detach().cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, dtype=np.float32))
    return tensor.float()


def _finite(tokens: Tensor) -> Tensor:
    if not len(tokens):
        raise ValueError("there are no tokens: the mask is False everywhere")
    bad = ~tokens.isfinite()
    if bad.any():
        rows, (row, column) = int(bad.any(1).sum()), bad.nonzero()[0].tolist()
        raise ValueError(
            f"the activations contain {tokens[row, column].item()} (first in token {row}, dimension {column}; "
            f"{rows} of {len(tokens)} tokens): leave these tokens out, or store the activations as float32, for "
            "float16 overflows at 65504"
        )
    return tokens
