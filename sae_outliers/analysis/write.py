"""Tables as CSV, Markdown and LaTeX, figures as PNG and PDF."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from sae_outliers.utils.files import atomic_write

TABLE_KINDS = ("csv", "md", "tex")
FIGURE_KINDS = ("png", "pdf")
# by what the column's name contains; 1 otherwise
DECIMALS = {
    **{"ρ": 3, "FVU": 3, "AUC": 3, "MMCS": 3, "γ": 2},
    **{"in bias": 2, "tokens": 0, "steps": 0, "lr": 5, "max|": 3, "ratio": 2, "all runs": 3},
}
ESCAPED = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash ", "~": r"\textasciitilde "})
LATEX = {"γ": r"$\gamma$", "ρ": r"$\rho$", "μ": r"$\mu$", "σ": r"$\sigma$"}  # pdflatex has no Greek of its own


class Table(NamedTuple):
    """A table as it is written: the note is its caption in the .md and .tex files."""

    name: str
    frame: pd.DataFrame
    note: str


def write_table(table: Table, directory: Path) -> None:
    """Write `<name>.csv` (full precision), `.md` and `.tex` (rounded, with the note) below `directory`."""
    text = format_for_display(table.frame)
    right = [pd.api.types.is_numeric_dtype(table.frame.get(c, pd.Series(dtype=float))) for c in text]
    with atomic_write(directory / f"{table.name}.csv") as path:
        table.frame.to_csv(path, index=False)
    with atomic_write(directory / f"{table.name}.md") as path:
        path.write_text(_markdown(text, right, table.note))
    with atomic_write(directory / f"{table.name}.tex") as path:
        path.write_text(_latex(text, right, table))


def write_figure(figure: Figure, name: str, directory: Path) -> None:
    """Write `<name>.png` (200 dpi) and `<name>.pdf` below `directory`."""
    with atomic_write(directory / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=200)
    figure.set_layout_engine("none")  # it is laid out now, which takes seconds where panels are many
    with atomic_write(directory / f"{name}.pdf") as path:
        figure.savefig(path, format="pdf", metadata={"CreationDate": None})  # same records, same bytes


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


def _markdown(text: pd.DataFrame, right: list[bool], note: str) -> str:
    align = ["right" if r else "left" for r in right]
    return f"{text.to_markdown(index=False, disable_numparse=True, colalign=align)}\n\n{note}\n"


def _latex(text: pd.DataFrame, right: list[bool], table: Table) -> str:
    align = "".join("r" if r else "l" for r in right)
    caption = table.note.replace("%", r"\%").replace("_", r"\_")
    label = f"tab:{table.name}"
    first = text[:1]  # pandas takes seconds for thousands of rows
    frame = first.to_latex(index=False, escape=True, column_format=align, caption=caption, label=label, position="htbp")
    above, _, below = frame.partition("\\midrule\n")
    rows = "".join(" & ".join(cell.translate(ESCAPED) for cell in row) + " \\\\\n" for row in text.to_numpy())
    latex = f"{above}\\midrule\n{rows}\\bottomrule{below.partition('bottomrule')[2]}"
    for letter, command in LATEX.items():
        latex = latex.replace(letter, command)
    return latex
