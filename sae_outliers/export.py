"""python -m sae_outliers.export run=<folder of a run> format=saelens to=<folder>: a trained SAE for another library.

    saelens               cfg.json, sae_weights.safetensors    SAE.load_from_disk (SAELens v6)
    dictionary_learning   config.json, ae.pt                   dictionary_learning.utils.load_dictionary
    sparsify              cfg.json, sae.safetensors            SparseCoder.load_from_disk
                          sae_outliers.json

A class of one's own is named by type=<its dotted path>: it is imported, and may bring a format of its own with it.

The centering is folded into the weights. The preprocessing is not: as a function of each token it stays with whoever
reads the files, and the command and the files' metadata say what it is.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sae_outliers.sae.base import type_named
from sae_outliers.sae.export.base import EXPORTERS, export, preprocessing_note
from sae_outliers.sae.io import load_sae
from sae_outliers.utils.boundary import one_sentence, shows_help


@dataclass(frozen=True)
class Request:
    run: str
    format: str
    to: str
    type: str | None = None  # the dotted path of a class of your own


def main(arguments: Sequence[str]) -> None:
    if not shows_help(arguments, __doc__):
        print(export_run(parse(arguments)))


def parse(arguments: Sequence[str]) -> Request:
    """Raises ValueError unless each field of Request is given once, as name=value; only `type` may be left out."""
    given = [argument.partition("=") for argument in arguments]
    names = [name for name, _, value in given if value]
    known = [field.name for field in fields(Request)]
    if len(names) != len(given) or sorted({*names, "type"}) != sorted(known) or len(set(names)) != len(names):
        usage = "run=<folder of a run> format=<format> to=<folder>, and type=<path of a class of your own>"
        raise ValueError(
            f"Expected {usage}, got {' '.join(arguments) or 'no arguments'}; formats: {', '.join(EXPORTERS)}"
        )
    return Request(**{name: value for name, _, value in given})


def export_run(request: Request) -> str:
    """Export the SAE of a run. Return what was written and how to read it, in two lines.

    Raises:
        FileNotFoundError: the run's folder holds no SAE.
        ValueError: as `export`, or the class at `type` is no SAE's.
    """
    path = Path(request.run) / "sae.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run that trained an SAE")
    sae, centering = load_sae(path, type_named(request.type) if request.type else None)
    described = description(path)
    written = export(sae, centering, described, request.format, Path(request.to))
    return f"{request.to}: {', '.join(written)}\n{preprocessing_note(described)}"


def description(path: Path) -> dict[str, Any]:
    """Return what `save_sae` was told about the SAE: columns of its run's record."""
    with safe_open(path, framework="pt") as file:
        described: dict[str, Any] = json.loads(file.metadata()["described"])
    return described


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
