"""Read a written page: its elements and the data in it, by other means than those that wrote it."""

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Elements(HTMLParser):
    """The elements of a page with their attributes and text, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # of the element that is open
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._name = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found.append((tag, given))
        self._open.append(tag)
        self._name = given.get("data-table") or self._name
        if tag == "tr":
            self.tables.setdefault(self._name, []).append([])
        if tag in ("th", "td"):
            self.tables[self._name][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        self.texts.append((tag, data))
        if {"th", "td"} & set(self._open):
            self.tables[self._name][-1][-1] += data.strip()

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


class ReadPage:
    """Attributes: the file's text; its elements; what the scripts read."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text("utf-8")
        self.elements = Elements(self.text)
        _, _, rest = self.text.partition('<script type="application/json" id="page-data">')
        self.data: dict[str, Any] = json.loads(rest.partition("</script>")[0])

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        """The rows of a dataset, as templates/page.js decodes them."""
        stored = self.data["datasets"][dataset]
        columns = {name: _cells(column, stored["n"]) for name, column in stored["columns"].items()}
        return [{name: cells[i] for name, cells in columns.items()} for i in range(stored["n"])]

    def csv(self, table: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.data["tables"][table])))


def _cells(column: Any, n: int) -> list[Any]:
    if isinstance(column, list):
        return column
    places = column.get("at", [0] * n)
    return [column["values"][place] for place in places]
