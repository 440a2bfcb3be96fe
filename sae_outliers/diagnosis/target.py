"""What the command is told to diagnose: a model of conf/model/, a hub id or folder, a timm model, or activations."""

from collections.abc import Sequence
from pathlib import Path

from sae_outliers.data.activation_files import supported
from sae_outliers.data.layered import LAYER, NUMBERED, layer_paths
from sae_outliers.paths import CONF_OWN, config_folders
from sae_outliers.utils.quoting import quoted

TIMM = "timm:"


def overrides_of(targets: Sequence[str]) -> list[str]:
    """Return the overrides by which `run` names the same.

    Raises:
        ValueError: there is none, or several that are not the files of one dump.
        FileNotFoundError: it looks like a path, and there is nothing.
    """
    if not targets:
        raise ValueError(
            "name what to diagnose: a hub id or a folder, timm:<name>, a model of conf/model such as offline/minilm, "
            "or files of activations"
        )
    if len(targets) > 1:
        return _dump(_together([Path(target).expanduser() for target in targets]))
    (target,) = targets
    if any((folder / "model" / f"{target}.yaml").is_file() for folder in config_folders() if folder != CONF_OWN):
        return [f"model={target}"]
    if target.startswith(TIMM):
        return ["model=timm", f"name={quoted(target.removeprefix(TIMM))}"]
    path = Path(target).expanduser()
    if LAYER in target or path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        return _dump(target)
    if not path.exists() and (supported(path) or target.startswith(("/", "./", "../", "~"))):
        raise FileNotFoundError(f"{target} does not exist")
    return ["model=hf", f"name={quoted(target)}"]


def _dump(path: str) -> list[str]:
    """Layers are numbered from wherever the names of the files begin."""
    first = [f"model.first_layer={min(layer_paths(path))}"] if LAYER in path else []
    return ["model=dump", f"path={quoted(path)}", *first]


def _together(paths: Sequence[Path]) -> str:
    """Return the one path that names these files: their folder, or with {layer} for the number in which they differ."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} does not exist: one model at a time, or the files of one dump")
    templates = {NUMBERED.sub(rf"\g<1>{LAYER}", str(path)) for path in paths}
    if len(templates) == 1 and LAYER in next(iter(templates)):
        return templates.pop()
    folder = paths[0].parent
    others = {file for file in folder.iterdir() if supported(file)} - set(paths)
    if any(path.parent != folder for path in paths) or others:
        raise ValueError(
            f"these {len(paths)} files are not all that there are in one folder, nor one for each layer: put the files "
            "of a dump into a folder of their own, and name that"
        )
    return str(folder)
