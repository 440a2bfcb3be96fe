"""Remove duplicate documents from a stream, whatever their type."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np


def distinct(documents: Iterable[Any]) -> Iterator[Any]:
    """Yield the documents in their order with duplicates removed. Integers are not compared.

    Only an 8-byte digest of each document is kept, which takes 70 to 140 bytes as an integer in a Python set: about
    0.1 GB for a million documents. The probability that any two different documents collide is n² / 2⁶⁵: 3e-8 for a
    million.
    """
    seen: set[int] = set()
    for document in documents:
        if isinstance(document, int):  # an item of a synthetic network, which has no content to compare
            yield document
            continue
        key = int.from_bytes(content_digest(document))
        if key not in seen:
            seen.add(key)
            yield document


def content_digest(document: Any) -> bytes:
    """Return an 8-byte digest of a text, an array (tensor, image), or a collection of these."""
    content = blake2b(digest_size=8)
    for part in _parts(document):
        content.update(part)
    return content.digest()


def _parts(document: Any) -> Iterator[bytes]:
    if isinstance(document, str):
        yield document.encode(errors="surrogatepass")  # web text can contain lone surrogates
    elif isinstance(document, bytes):
        yield document
    elif isinstance(document, dict):
        for key in sorted(document):
            yield from (str(key).encode(), content_digest(document[key]))
    elif isinstance(document, list | tuple):
        for part in document:
            yield content_digest(part)
    else:  # include shape and dtype, because images of different shapes can have the same bytes
        array = np.ascontiguousarray(document)
        yield from (f"{array.shape} {array.dtype}".encode(), array.tobytes())
