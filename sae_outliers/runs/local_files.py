"""The local files that a config names: other content under the same name is another run."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from sae_outliers.config import role_of
from sae_outliers.utils.files import digest, file_fingerprints

MAX_LISTED = 100  # files of one place that are listed in the settings; of more, their digest is
# settings of loaders and sources whose value is a place even where it looks like any other word
PLACES = ("checkpoint", "file", "files", "folder", "path", "tokenizer", "weights")


def local_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprints of every local file that determines results under a resolved config, as `files`.

    That is what `path` and `name` name, and any value of a setting that affects results where it is a place on this
    machine: a file, a folder, a pattern or a list of these, of the model's loader, the data's source or a yaml of
    one's own. Empty where there is none.
    """
    asked = [config[key] for key in ("path", "name") if config[key]]
    places = dict.fromkeys(os.path.expanduser(value) for value in (*asked, *_possible_places(config, "")))
    found = [file_fingerprints(Path(match)) for place in places for match in _existing(place)]
    return {"files": [_shortened(stamps) for stamps in found]} if found else {}


def newest(stamps: Iterable[Sequence[Sequence[str | int]]]) -> int:
    """Return when the last of the files in `files` was modified, in ns; of a place with many files, 0."""
    return max((int(stamp[2]) for place in stamps for stamp in place if isinstance(stamp[2], int)), default=0)


def _existing(place: str) -> list[str]:
    """What is there under a name, or under a pattern."""
    pattern = place.replace("{layer}", "*")
    if os.path.exists(place) or not has_magic(pattern):
        return [place] if os.path.exists(place) else []
    return sorted(glob(pattern, recursive=True))


def _possible_places(node: Any, key: str) -> Iterator[str]:
    """The words below a setting that may name a file."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _possible_places(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list):
        for value in node:
            yield from _possible_places(value, key)
    elif isinstance(node, str) and node and role_of(key).affects != "nothing" and not key.endswith("._target_"):
        is_place = "/" in node or node.startswith("~") or bool(Path(node).suffix) or key.rpartition(".")[2] in PLACES
        if is_place:  # a folder here may bear the name of a split or a column, which is none
            yield node


def _shortened(stamps: list[list[str | int]]) -> list[list[str | int]]:
    if len(stamps) <= MAX_LISTED:
        return stamps
    return [[str(stamps[0][0]).partition("/")[0], len(stamps), digest(stamps)]]
