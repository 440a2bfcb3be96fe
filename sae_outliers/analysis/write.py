"""Tables as CSV, Markdown and LaTeX, figures as PNG and PDF."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from sae_outliers.utils.cells import format_for_display
from sae_outliers.utils.files import atomic_write

TABLE_KINDS = ("csv", "md", "tex")
FIGURE_KINDS = ("png", "pdf")
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
