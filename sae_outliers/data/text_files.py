"""Text in local files: plain, jsonl, csv or tsv, each also gzipped, or parquet."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sae_outliers.data.base import matching_files, require_nonempty, shuffled
from sae_outliers.data.reading import Tolerance, reading

log = logging.getLogger(__name__)

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
}
CHATS = ("messages", "conversation", "conversations")  # columns read where there is no `text`


@dataclass(frozen=True)
class TextFiles:
    """A source of documents from text files, shuffled.

    A row of a jsonl, csv or parquet file is a document: a text, or a chat, with a paragraph `role: content` a turn. The
    lines of a plain text are joined into passages that end at a blank line, because single lines or paragraphs would
    not fill a model's context. A passage is at most twice `passage` long even without a blank line, so that no file has
    to fit into memory.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these.
        column: the column of the text in files with rows; null: `text`, or else one of chats.
        passage: approximate number of characters in a passage of plain text; null: each line is a document, such as a
            prompt.
        buffer: documents in memory, from which the next is drawn.
        encoding: of text that is not UTF-8, such as latin-1 or utf-16.
        on_error: what to do with a file that cannot be read: `skip` or, as with None, `refuse`.
    """

    files: str | Sequence[str]
    column: str | None = None
    passage: int | None = 8000
    buffer: int = 10_000
    encoding: str | None = None
    on_error: str | None = None

    def __call__(self, seed: int) -> Iterator[str]:
        """Return an iterator over the documents. Raise FileNotFoundError without files, ValueError without text."""
        files = matching_files(self.files, KINDS, seed)
        tolerance = Tolerance(self.on_error)
        texts = (text for file in files for text in tolerance.attempt(partial(self._documents, file)) if text.strip())
        return shuffled(require_nonempty(texts, f"there is no text in {self.files}"), seed, self.buffer)

    def _documents(self, file: Path) -> Iterator[str]:
        kind = kind_of(file)
        if kind != "text":
            return column_of(file, kind, self.column, self.encoding)
        lines = column_of(file, kind, None, self.encoding)
        return lines if self.passage is None else joined(lines, self.passage)


def kind_of(file: Path) -> str:
    """Return the name of the loader in the package `datasets`. Raise ValueError for an unsupported file type."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in KINDS:
        raise ValueError(f"{file} is not a supported text file: use {', '.join(KINDS)}")
    return KINDS[suffix]


def column_of(file: Path, kind: str, column: str | None, encoding: str | None = None) -> Iterator[str]:
    """Yield the texts in a column, row by row; None: see `TextFiles`. Raise ValueError if there is none to be read."""
    for number, row in enumerate(_rows(file, kind, encoding), 1):
        if number == 1 and isinstance(row.get(_chat_column(row)), list):
            log.warning("%s holds chats: turns are read as `role: content`, without the tokenizer's template", file)
        name = column or _chat_column(row)
        if name not in row:
            raise ValueError(
                f"{file} has no column {name}: it has {', '.join(map(str, row))}; name one by data.source.column="
            )
        yield text_of(row[name], f"{file}, row {number}, column {name},")


def _chat_column(row: Mapping[str, Any]) -> str:
    return "text" if "text" in row else next((name for name in CHATS if name in row), "text")


def text_of(value: Any, where: str) -> str:
    """Return a text, or the turns of a chat, one after the other. Raise ValueError for anything else."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return "\n\n".join(_turn(turn, where) for turn in value)
    if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
        raise ValueError(
            f"{where} holds token ids: which tokenizer they are of is not known: decode them to a column of text, or "
            "store your model's activations on them and read these by model=dump"
        )
    kind = "a struct" if isinstance(value, Mapping) else type(value).__name__
    raise ValueError(f"{where} holds {kind}, not text: name a column of text by data.source.column=")


def _turn(turn: Mapping[str, Any], where: str) -> str:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{where} holds a chat whose turns lack a role or content: they have {', '.join(turn)}")
    return f"{role}: {content}"


def _rows(file: Path, kind: str, encoding: str | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # imported lazily: takes a second

    options: dict[str, Any] = {"sep": "\t"} if ".tsv" in file.name.lower() else {}
    if encoding is not None and kind != "parquet":
        options["encoding"] = encoding
    with reading(file, _advice(file, kind, encoding)):
        yield from load_dataset(kind, data_files=str(file), split="train", streaming=True, **options)


def _advice(file: Path, kind: str, encoding: str | None) -> str:
    """Return what to do about a file that cannot be read as its kind."""
    if kind != "parquet" and encoding is None and not file.name.endswith(".gz"):
        return f"it is damaged, no {kind}, or not UTF-8: write it again, or say data.source.encoding=latin-1 or utf-16"
    return f"it is damaged or no {kind}: write it again"


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
