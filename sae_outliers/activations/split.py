"""Which rows of a layer are evaluation tokens and which are training tokens, by the flags of its rows."""

from dataclasses import dataclass

import numpy as np

SPECIAL, DOC_START = 1, 2  # flags of a row: BOS, CLS and the like; the first row of its document
ROWS_AT_ONCE = 1 << 20  # flags read at a time while counting tokens


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
