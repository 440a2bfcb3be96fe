"""English text that comes with Python itself, so that a run needs neither network nor download.

Its wording changes a little from one Python release to the next, and the figures with it.
"""

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics as pydoc_topics

# not the library itself, but its tests, what is installed beside it, and a copy of an old pip's wheel
OUTSIDE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip"}


@dataclass(frozen=True)
class PackagedText:
    """Passages of Python's documentation, shuffled.

    Attributes:
        corpora: `topics` (the language reference that `help()` shows; 0.46 million characters) and
            `docstrings` (of the standard library's modules; 1.8 million).
        passage: characters in a passage, about. Long texts are cut, so that the first thousands of tokens of
            a shuffle come from everywhere in the corpus.
    """

    corpora: Sequence[str] = ("topics",)
    passage: int = 2000

    def __call__(self, seed: int) -> Iterator[str]:
        """Every passage once, in an order that `seed` sets."""
        shuffled = [part for name in self.corpora for text in texts(name) for part in passages(text, self.passage)]
        random.Random(seed).shuffle(shuffled)
        yield from shuffled


def texts(corpus: str) -> Iterator[str]:
    """The texts of one corpus, in a fixed order. Raises ValueError if there is no such corpus."""
    if corpus == "topics":
        return (pydoc_topics[name] for name in sorted(pydoc_topics))
    if corpus == "docstrings":
        return docstrings(Path(sysconfig.get_path("stdlib")))
    raise ValueError(f"no corpus {corpus!r}: there are topics and docstrings")


def docstrings(folder: Path) -> Iterator[str]:
    """All docstrings of each Python file below `folder`, joined by blank lines."""
    for file in sorted(folder.rglob("*.py")):
        if OUTSIDE.isdisjoint(file.relative_to(folder).parts) and (found := docstrings_of(file)):
            yield "\n\n".join(found)


def docstrings_of(file: Path) -> list[str]:
    """The docstrings in a file, outer before inner definitions; none if it is no valid Python."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings(action="ignore"):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return []
    return [text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))]


def passages(text: str, size: int) -> Iterator[str]:
    """Cut `text` between paragraphs into parts of about `size` characters; a longer paragraph stays whole."""
    part = ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + len(paragraph) > size:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    if part.strip():
        yield part
