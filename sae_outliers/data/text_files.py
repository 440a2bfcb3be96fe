"""Text in local files: plain or jsonl, each also gzipped, or parquet."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.data.base import matching_files, require_nonempty, shuffled

KINDS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class TextFiles:
    """A source of documents from text files, shuffled.

    A row of a jsonl or parquet file is a document. The lines of a plain text are joined into passages that end at a
    blank line, because single lines or paragraphs would not fill a model's context. A passage is at most twice
    `passage` long even without a blank line, so that no file has to fit into memory.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these.
        column: the column of the text in jsonl and parquet files.
        passage: approximate number of characters in a passage of plain text; null: each line is a document, such as a
            prompt.
        buffer: documents in memory, from which the next is drawn.
    """

    files: str | Sequence[str]
    column: str = "text"
    passage: int | None = 8000
    buffer: int = 10_000

    def __call__(self, seed: int) -> Iterator[str]:
        """Return an iterator over the documents. Raise FileNotFoundError without files, ValueError without text."""
        files = matching_files(self.files, KINDS, seed)
        documents = (document for file in files for document in self._documents(file) if document.strip())
        return shuffled(require_nonempty(documents, f"there is no text in {self.files}"), seed, self.buffer)

    def _documents(self, file: Path) -> Iterator[str]:
        kind = kind_of(file)
        if kind != "text":
            return column_of(file, kind, self.column)
        lines = column_of(file, kind, "text")
        return lines if self.passage is None else joined(lines, self.passage)


def kind_of(file: Path) -> str:
    """Return the name of the loader in the package `datasets`. Raise ValueError for an unsupported file type."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in KINDS:
        raise ValueError(f"{file} is not a supported text file: use {', '.join(KINDS)}")
    return KINDS[suffix]


def column_of(file: Path, kind: str, column: str) -> Iterator[str]:
    """Yield the texts in a column, row by row. Raise ValueError if it is missing or the file cannot be read."""
    for row in _rows(file, kind):
        if column not in row:
            raise ValueError(f"{file} has no column {column}: it has {', '.join(row)}")
        yield row[column] or ""


def _rows(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # imported lazily: takes a second

    try:
        yield from load_dataset(kind, data_files=str(file), split="train", streaming=True)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as {kind}: {error}") from error


def joined(lines: Iterable[str], size: int) -> Iterator[str]:
    """Yield passages of lines that end at the first blank line after `size` characters, or at twice `size`."""
    part: list[str] = []
    length = 0
    for line in lines:
        if length >= 2 * size or (length >= size and not line.strip()):
            yield "\n".join(part).strip()
            part, length = [], 0
        part.append(line)
        length += len(line) + 1
    yield "\n".join(part).strip()
