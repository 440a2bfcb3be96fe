"""Text, chats or token ids in local files: plain, jsonl, csv or tsv, each also gzipped, parquet or arrow."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_outliers.data.base import matching_files, require_nonempty, shuffled
from sae_outliers.data.reading import Tolerance, reading
from sae_outliers.utils.chat import Chat, Turn

log = logging.getLogger(__name__)

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
}
# the columns of which the first that is there is read, unless one is named: a text, a chat, token ids
COLUMNS = ("text", "messages", "conversation", "conversations", "input_ids")
ROLES = {"human": "user", "gpt": "assistant"}  # as some data have them -> as chat templates know them

BINARY = ("parquet", "arrow")

Document = str | np.ndarray


@dataclass(frozen=True)
class TextFiles:
    """A source of documents from text files, shuffled.

    A row of a jsonl, csv, parquet or arrow file is a document: a text, a chat, or token ids. The
    lines of a plain text are joined into passages that end at a blank line, because single lines or paragraphs would
    not fill a model's context. A passage is at most twice `passage` long even without a blank line, so that no file has
    to fit into memory.

    Attributes:
        files: a file, a folder, a glob pattern, or a list of these.
        column: the column of the text in files with rows; null: the first that is there of COLUMNS.
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

    def __call__(self, seed: int) -> Iterator[Document]:
        """Return an iterator over the documents. Raise FileNotFoundError without files, ValueError without text."""
        files = matching_files(self.files, KINDS, seed)
        tolerance = Tolerance(self.on_error)
        found = (
            one for file in files for one in tolerance.attempt(partial(self._documents, file)) if not is_blank(one)
        )
        return shuffled(require_nonempty(found, f"there is no text in {self.files}"), seed, self.buffer)

    def _documents(self, file: Path) -> Iterator[Document]:
        kind = kind_of(file)
        if kind != "text":
            return column_of(file, kind, self.column, self.encoding)
        lines = (row["text"] for row in _rows(file, kind, self.encoding))
        return lines if self.passage is None else joined(lines, self.passage)


def is_blank(document: Document) -> bool:
    return not document.strip() if isinstance(document, str) else not len(document)


def kind_of(file: Path) -> str:
    """Return the name of the loader in the package `datasets`. Raise ValueError for an unsupported file type."""
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in KINDS:
        raise ValueError(f"{file} is not a supported text file: use {', '.join(KINDS)}")
    return KINDS[suffix]


def column_of(file: Path, kind: str, column: str | None, encoding: str | None = None) -> Iterator[Document]:
    """Yield what is in a column, row by row; None: see `TextFiles`. Raise ValueError if there is none to be read."""
    for number, row in enumerate(_rows(file, kind, encoding), 1):
        name = column or next((name for name in COLUMNS if name in row), COLUMNS[0])
        if name not in row:
            raise ValueError(
                f"{file} has no column {name}: it has {', '.join(map(str, row))}; name one by data.source.column="
            )
        where = f"{file}, row {number}, column {name},"
        document = document_of(row[name], where)
        if isinstance(document, np.ndarray):
            document = _unpadded(document, row.get("attention_mask"), where)
        elif isinstance(document, Chat) and number == 1:
            log.info("%s holds chats: in the tokenizer's chat template, or as `role: content` if it has none", file)
        yield document


def document_of(value: Any, where: str) -> Document:
    """Return a text, a `Chat` or token ids, int64 [tokens]. Raise ValueError for anything else."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return Chat([_turn(turn, where) for turn in value])
    if isinstance(value, list) and all(isinstance(one, int) for one in value):
        return np.array(value, dtype=np.int64)
    kind = "a struct" if isinstance(value, Mapping) else type(value).__name__
    raise ValueError(f"{where} holds {kind}, not text: name a column of text by data.source.column=")


def _turn(turn: Mapping[str, Any], where: str) -> Turn:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"{where} holds a chat whose turns lack a role or content: they have {', '.join(turn)}")
    return {"role": ROLES.get(role, role), "content": content}


def _unpadded(ids: np.ndarray, mask: Any, where: str) -> np.ndarray:
    """Return the ids at which the mask beside them, if there is one, says that they are tokens."""
    if mask is None:
        return ids
    if np.shape(mask) != ids.shape:
        raise ValueError(f"{where} holds {len(ids)} token ids, but its attention_mask {np.shape(mask)}")
    return ids[np.array(mask) != 0]


def _rows(file: Path, kind: str, encoding: str | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # imported lazily: takes a second

    options: dict[str, Any] = {"sep": "\t"} if ".tsv" in file.name.lower() else {}
    if encoding is not None and kind not in BINARY:
        options["encoding"] = encoding
    with reading(file, _advice(file, kind, encoding)):
        yield from load_dataset(kind, data_files=str(file), split="train", streaming=True, **options)


def _advice(file: Path, kind: str, encoding: str | None) -> str:
    """Return what to do about a file that cannot be read as its kind."""
    if kind not in BINARY and encoding is None and not file.name.endswith(".gz"):
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
