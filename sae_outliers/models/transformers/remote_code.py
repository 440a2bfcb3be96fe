"""Models whose Python code lies in their hub repository: when it may run, and how such a model is loaded."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from sae_outliers.models.transformers.safetensors_files import checkpoint_folder, fill, stored_tensors


def permitted_code(checkpoint: str | Path, revision: str | None, code: str | None, trusted: bool) -> str | None:
    """Which code a checkpoint needs beside transformers: `repository@commit`, a local folder, or None.

    Args:
        code: as a model's yaml names it; where it does not, the checkpoint's config.json is asked.
        trusted: whether the user has allowed it to run.

    Raises ValueError if the code has not been allowed, or if it lies on the hub and is not pinned to a commit.
    """
    needed = code or _needed(checkpoint, revision)
    if needed is None:
        return None
    repository, _, commit = needed.partition("@")
    if not trusted:
        pinned = f" at revision {commit}" if commit else ""
        raise ValueError(
            f"{checkpoint} is run by Python code from {repository}{pinned}, which is not part of transformers: "
            "read it there, and add trust_remote_code=true to have it run"
        )
    if not commit and not Path(needed).is_dir():
        raise ValueError(
            f"the Python code in {repository} may change any day: read one commit of it and name that one with "
            f"model.loader.code={repository}@<commit>"
        )
    return needed


def _needed(checkpoint: str | Path, revision: str | None) -> str | None:
    """Where the code lies that config.json names, if transformers has none of its own for this type of model."""
    entries, _ = PretrainedConfig.get_config_dict(checkpoint, **at(revision))
    reference = (entries.get("auto_map") or {}).get("AutoConfig")
    if reference is None or entries.get("model_type") in CONFIG_MAPPING:
        return None
    repository, found, _ = reference.partition("--")
    return repository if found else str(checkpoint)


def at(revision: str | None, code: str | None = None) -> dict[str, Any]:
    """Arguments of transformers' Auto classes that fix the revision of the weights and of the code that may run."""
    arguments: dict[str, Any] = {"trust_remote_code": code is not None}
    if revision is not None:
        arguments["revision"] = revision
    if code is not None and "@" in code:
        arguments["code_revision"] = code.rpartition("@")[2]
    return arguments


def load_foreign(checkpoint: str | Path, revision: str | None, code: str) -> nn.Module:
    """A model by the code of its repository, without its head if that code has a class without; not yet cast.

    The constructor runs on the CPU, and the stored weights are copied into what it made. transformers 5's own loading
    constructs on the meta device and leaves uninitialised memory in buffers that are not stored, unless the model's
    code re-computes them, which code from before does not: gLM2's rotary frequencies and norm constants, for two.
    """
    module = construct(checkpoint, revision, code)
    stored = stored_tensors(checkpoint_folder(checkpoint, revision))
    fill(module, (_of_base(part, module) for part in stored), checkpoint)
    return module


def construct(checkpoint: str | Path, revision: str | None, code: str | None) -> nn.Module:
    """A model with random weights, on torch's current default device, by remote code if `code` says where it is."""
    options = at(revision, code)
    config = AutoConfig.from_pretrained(checkpoint, **options)
    if code is None:
        return AutoModel.from_config(config)
    del options["trust_remote_code"]
    return get_class_from_dynamic_module(_model_class(config), checkpoint, **options)(config)


def _model_class(config: Any) -> str:
    """What config.json names for AutoModel, or if nothing, the class that the checkpoint was saved from."""
    named = {auto: str(path) for auto, path in config.auto_map.items() if auto.startswith("AutoModel")}
    saved = [path for path in named.values() if path.rpartition(".")[2] in (config.architectures or ())]
    candidates = [named[auto] for auto in ("AutoModel",) if auto in named] + saved + list(named.values())
    if not candidates:
        raise ValueError(f"config.json of {config.name_or_path} names no class of models in its auto_map")
    return candidates[0]


def _of_base(tensors: dict[str, Tensor], module: Any) -> dict[str, Tensor]:
    """`tensors` by the names of `module`, if they were stored with a head around it."""
    base = module.base_model_prefix
    if not base or hasattr(module, base):
        return tensors
    return {name.removeprefix(f"{base}."): tensor for name, tensor in tensors.items()}
