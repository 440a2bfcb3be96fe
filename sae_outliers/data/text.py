"""English text that is part of Python itself, so that a run needs no download.

Its wording, and thus the results on it, change slightly between Python releases.
"""

import ast
import random
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics as pydoc_topics

# tests, installed packages, and the wheel of an old pip: not part of the standard library's documentation
EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
BODIES = ("body", "handlers", "orelse", "finalbody", "cases")  # of statements, in the order of their fields


@dataclass(frozen=True)
class PackagedText:
    """A source of passages of Python's documentation, shuffled.

    Attributes:
        corpora: `topics` (the language reference that `help()` shows; 0.46 million characters) and
            `docstrings` (of the standard library's modules; 1.8 million).
        passage: approximate number of characters in a passage. Long texts are cut so that the first few thousand
            tokens after shuffling come from the whole corpus.
    """

    corpora: Sequence[str] = ("topics",)
    passage: int = 2000

    def __call__(self, seed: int) -> Iterator[str]:
        """Yield the passages in an order determined by `seed`."""
        shuffled = [part for name in self.corpora for text in texts(name) for part in passages(text, self.passage)]
        random.Random(seed).shuffle(shuffled)
        yield from shuffled


def texts(corpus: str) -> Iterator[str]:
    """Return an iterator over the texts of a corpus, in a fixed order. Raise ValueError if there is no such corpus."""
    if corpus == "topics":
        return (pydoc_topics[name] for name in sorted(pydoc_topics))
    if corpus == "docstrings":
        return iter(standard_library())
    raise ValueError(f"no corpus {corpus!r}: there are topics and docstrings")


@cache  # 2 s, and a stream is read again for each pass
def standard_library() -> list[str]:
    return list(docstrings(Path(sysconfig.get_path("stdlib"))))


def docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of each Python file below `folder`, joined by blank lines."""
    for file in sorted(folder.rglob("*.py")):
        if EXCLUDED_FOLDERS.isdisjoint(file.relative_to(folder).parts) and (found := docstrings_of(file)):
            yield "\n\n".join(found)


def docstrings_of(file: Path) -> list[str]:
    """Return the docstrings in a file, outer definitions before inner ones; none if it is not valid Python."""
    with warnings.catch_warnings(action="ignore"):  # about escape sequences in code that is not ours
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return []
    return [text for node in definitions(tree) if (text := ast.get_docstring(node))]


def definitions(tree: ast.Module) -> Iterator[Documented]:
    """Yield what can have a docstring, as `ast.walk` would: without a look into expressions, which takes most of it."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        waiting.extend(child for name in BODIES for child in getattr(node, name, ()))
        if isinstance(node, Documented):
            yield node


def passages(text: str, size: int) -> Iterator[str]:
    """Yield parts of `text` of about `size` characters, cut between paragraphs; a longer paragraph stays whole."""
    part = ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + len(paragraph) > size:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph
    if part.strip():
        yield part
