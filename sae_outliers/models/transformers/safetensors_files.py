"""Read the safetensors files of a checkpoint into a module, bypassing the loading code of transformers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn


def checkpoint_folder(checkpoint: str | Path, revision: str | None) -> Path:
    """Return the folder with a checkpoint's JSON and safetensors files; those of a hub id are downloaded once."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    return Path(snapshot_download(str(checkpoint), revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def stored_tensors(folder: Path) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors by name, file by file. Raise FileNotFoundError if there is no safetensors file."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: weights are read from safetensors only")
        yield load_file(folder / name)


def fill(module: nn.Module, tensors: Iterable[dict[str, Tensor]], checkpoint: str | Path) -> None:
    """Copy tensors into the parameters and buffers of the same name, which keep their dtype.

    Raise ValueError if a parameter is not among them and is not tied to one that is.
    """
    filled: set[int] = set()  # by address, because tied weights are stored under one of their names
    for part in tensors:
        with torch.no_grad():
            module.load_state_dict(part, strict=False)  # a file has only some of the weights; checked at the end
        parameters = module.named_parameters(remove_duplicate=False)
        filled |= {weight.data_ptr() for name, weight in parameters if name in part}
    lacking = sorted(name for name, weight in module.named_parameters() if weight.data_ptr() not in filled)
    if lacking:
        raise ValueError(f"{checkpoint} lacks {len(lacking)} of the weights that are measured, {lacking[0]} for one")
