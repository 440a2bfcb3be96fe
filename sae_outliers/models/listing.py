"""python -m sae_outliers.models: the models that there are configs of, and whether what loads them is installed."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from sae_outliers.paths import CONF, PAPER_MODELS, user_conf
from sae_outliers.utils.boundary import shows_help
from sae_outliers.utils.package_cache import install_command

DOMAINS = ("language", "genomic", "protein", "vision")  # the paper's, in its order
SOURCES = ("paper", "package", "yours")
PROJECT_FOLDERS = {"offline": "package", "synthetic": None}  # of conf/model/; synthetic activations are no model


def main(arguments: Sequence[str]) -> None:
    if not shows_help(arguments, __doc__):
        print(tabulate(rows(), headers="keys", missingval=""))


def rows() -> list[dict[str, Any]]:
    """A row for each model: the paper's, then those whose weights come with packages, then the user's own.

    Raises:
        ValueError: one of the user's files is no model config (named).
    """
    found = [row(source, option, read_model(path)) for source, option, path in model_files()]
    return sorted(found, key=_order)


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    domain = row["domain"]
    place = DOMAINS.index(domain) if domain in DOMAINS else len(DOMAINS)
    return SOURCES.index(row["source"]), place, str(domain), row["model"]


def model_files() -> Iterator[tuple[str, str, Path]]:
    """Each model's source, its option and its file."""
    own = user_conf()
    for folder in (CONF, *([own] if own else [])):
        for path in (folder / "model").rglob("*.yaml"):
            option = path.relative_to(folder / "model").with_suffix("").as_posix()
            source = PROJECT_FOLDERS.get(option.partition("/")[0], "yours") if folder == CONF else "yours"
            if source is not None:
                yield ("paper" if option in PAPER_MODELS else source), option, path


def read_model(path: Path) -> dict[str, Any]:
    """What a file in conf/model/ says of its model, whether or not it opens with `@package _global_`.

    Raises:
        ValueError: it says no name.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    model = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(model, dict) or "name" not in model:
        raise ValueError(f"{path} is no model config: it says no name")
    return model


def row(source: str, option: str, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": option,
        "domain": model.get("domain"),
        "layers": _layers(model),
        "d_model": model.get("d_model"),
        "weights (M)": round(float(model["parameters"]) / 1e6) if model.get("parameters") else None,
        "GPU (GB)": min(model.get("gpu_batch_size") or {}, default=None),
        "library": model.get("library"),
        "installed": installed(model.get("library")),
        "licence": model.get("licence"),
        "access": model.get("access"),
        "source": source,
    }


def _layers(model: dict[str, Any]) -> str:
    first, last = model.get("first_layer", 1), model.get("last_layer")
    if not isinstance(last, int):
        return f"{first}-"  # it is counted when the model is loaded
    return str(first) if first == last else f"{first}-{last}"


def installed(library: str | None) -> str:
    """The version that is here, or the command that gets one."""
    if library is None:
        return "yes"
    try:
        return version(library)
    except PackageNotFoundError:
        return install_command(library)
