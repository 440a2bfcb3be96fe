"""The cells of tables as text, each column rounded to what its name asks for."""

import pandas as pd

# by what the column's name contains; 1 otherwise
DECIMALS = {
    **{"ρ": 3, "FVU": 3, "AUC": 3, "MMCS": 3, "γ": 2},
    **{"in bias": 2, "tokens": 0, "steps": 0, "lr": 5, "max|": 3, "ratio": 2, "all runs": 3},
}


def format_for_display(frame: pd.DataFrame) -> pd.DataFrame:
    """Return all cells as text, rounded; `x low` and `x high` become one column `x 95 %` with `[low, high]`."""
    shown: dict[str, list[str]] = {}
    for column in frame:
        name = str(column)
        if name.endswith(" low"):
            ends = (_texts(frame, name), _texts(frame, name.removesuffix("low") + "high"))
            shown[name.removesuffix("low") + "95 %"] = [
                f"[{a}, {b}]" if a and b else "" for a, b in zip(*ends, strict=True)
            ]
        elif not name.endswith(" high"):
            shown[name] = _texts(frame, name)
    return pd.DataFrame(shown, index=frame.index)


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    values = frame[column]
    if not pd.api.types.is_float_dtype(values):
        return ["" if pd.isna(value) else str(value) for value in values]
    decimals = next((n for part, n in DECIMALS.items() if part in column), 1)
    return ["" if pd.isna(value) else f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values]
