"""Dumps of several layers: a file or folder for each, with `{layer}` for its number in their path, or saev's shards."""

import json
import re
from collections.abc import Iterable
from glob import escape, glob
from pathlib import Path
from typing import Any

from sae_outliers.data.reading import reading

LAYER = "{layer}"
NUMBERED = re.compile(r"(?i)(?<![a-z])((?:hidden_states?|layers?|blocks?|blk|resid(?:_post|_pre)?|h|l)[._-]?)(\d+)")


def layer_paths(path: str) -> dict[int, Path]:
    """Return the files or folders that a path with `{layer}` names, by the layer's number.

    Raise FileNotFoundError if there are none, ValueError if two have one number.
    """
    before, *after = str(Path(path).expanduser()).split(LAYER)
    # the first number is the layer's, and every further {layer} has to repeat it
    pattern = re.compile(re.escape(before) + r"(?P<layer>\d+)" + r"(?P=layer)".join(map(re.escape, after)))
    found: dict[int, Path] = {}
    for name in sorted(glob("*".join(map(escape, (before, *after))))):
        if match := pattern.fullmatch(name):
            number = int(match["layer"])
            if number in found:
                raise ValueError(f"{found[number]} and {name} are both layer {number}: keep one of them")
            found[number] = Path(name)
    if not found:
        raise FileNotFoundError(f"{path} names nothing: there is no file or folder with a number in place of {LAYER}")
    return dict(sorted(found.items()))


def saev_layers(path: Path) -> list[int]:
    """Return the layers that a file of saev's holds, or those below a folder; none where it wrote none."""
    found = [path.with_name("metadata.json")] if path.is_file() else sorted(path.rglob("metadata.json"))
    for about in found:
        if about.is_file() and about.with_name("shards.json").is_file():
            with reading(about):
                return sorted(int(layer) for layer in json.loads(about.read_text())["layers"])
    return []


def last_layer(path: str | None, first: int = 0, key: Any = None) -> int | list[int]:
    """Return the number of the last layer at `path`, 0 without `{layer}` in it; all numbers of saev's shards.

    With a key a document has one array, which is layer 0.

    Raise FileNotFoundError if the path names nothing, ValueError unless its layers are numbered from `first` without a
    gap.
    """
    if path is None:
        return 0
    if LAYER not in path:
        several = saev_layers(Path(path).expanduser()) if key is None else []
        return several if len(several) > 1 else 0
    numbers = list(layer_paths(path))
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise ValueError(
            f"{path} has the layers {', '.join(map(str, numbers))}, with gaps: number them without, or read one of "
            f"them as layer 0, such as path={path.replace(LAYER, str(numbers[0]))} layer=0"
        )
    if numbers[0] != first:
        raise ValueError(f"{path} begins with layer {numbers[0]}: add model.first_layer={numbers[0]}")
    return numbers[-1]


def refuse_pooled_layers(folder: Path, files: Iterable[Path]) -> None:
    """Raise ValueError if the names of files in a folder differ in a layer's number, with the path to use."""
    numbers: dict[str, set[int]] = {}
    for file in files:
        name = str(file.relative_to(folder))
        for match in NUMBERED.finditer(name):
            template = f"{name[: match.start(2)]}{LAYER}{name[match.end(2) :]}"
            numbers.setdefault(template, set()).add(int(match[2]))
    several = {template: found for template, found in numbers.items() if len(found) > 1}
    if not several:
        return
    template = min(several)
    place = folder / _shortest(template)
    raise ValueError(
        f"the files in {folder} differ in the number of a layer, and would be pooled as one: add "
        f"'path=\"{place}\"' layer=all for all layers, or name the file of one"
    )


def _shortest(template: str) -> str:
    """Return the template up to its folder with the layer, or whole if that is in the file's name."""
    parts = Path(template).parts
    last = next(i for i, part in enumerate(parts) if LAYER in part)
    return str(Path(*parts[: last + 1]))
