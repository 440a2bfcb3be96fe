"""Frames as JSON inside a page: by columns, each distinct text once."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd

DIGITS = 7  # significant ones; what is shown has four at most


def encode(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the number of rows `n`, and by column its values; or its distinct `values`, and `at`, where each row's is.

    `at` is left out where all rows have the same.
    """
    return {"n": len(frame), "columns": {str(name): _column(frame[name]) for name in frame}}


def _column(column: pd.Series) -> list[Any] | dict[str, Any]:
    cells = [plain(cell) for cell in column]
    distinct = list(dict.fromkeys(cells))
    if len(distinct) == 1 and len(cells) > 1:
        return {"values": distinct}
    if 2 * len(distinct) < len(cells) and any(isinstance(cell, str) for cell in distinct):
        place = {cell: number for number, cell in enumerate(distinct)}
        return {"values": distinct, "at": [place[cell] for cell in cells]}
    return cells


def plain(cell: Any) -> Any:
    """Return a cell as JSON has it: None for NaN, floats to DIGITS; `inf` stays a word, for it is no number there."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return None
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return None if math.isnan(cell) else str(cell)
        short = float(f"{cell:.{DIGITS}g}")
        return int(short) if short.is_integer() else short
    return cell if isinstance(cell, str | int) else str(cell)


def json_in_html(value: Any) -> str:
    """Return JSON that may stand in a script element, whatever the texts in it hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
