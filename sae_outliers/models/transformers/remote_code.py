"""Models whose Python code is in a hub repository: decide whether it may run, and load them."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from sae_outliers.models.transformers.safetensors_files import checkpoint_folder, fill, stored_tensors


def permitted_code(checkpoint: str | Path, revision: str | None, code: str | None, trusted: bool) -> str | None:
    """Return the code that a checkpoint needs besides transformers: `repository@commit`, a local folder, or None.

    Args:
        code: the code that the model's yaml names; None: the one that the checkpoint's config.json names.
        trusted: whether the user has allowed it to run.

    Raise ValueError if the code has not been allowed, or if it is on the hub and not pinned to a commit.
    """
    needed = code or _required_code(checkpoint, revision)
    if needed is None:
        return None
    repository, _, commit = needed.partition("@")
    if not trusted:
        pinned = f" at revision {commit}" if commit else ""
        raise ValueError(
            f"{checkpoint} is run by Python code from {repository}{pinned}, which is not part of transformers: "
            "read it there, and add trust_remote_code=true to have it run"
        )
    # a permission is for code that the user has read; an unpinned repository can change afterwards
    if not commit and not Path(needed).is_dir():
        raise ValueError(
            f"the Python code in {repository} may change at any time: read one commit of it and pin that with "
            f"model.loader.code={repository}@<commit>"
        )
    return needed


def _required_code(checkpoint: str | Path, revision: str | None) -> str | None:
    """Return the repository or folder of the code that config.json names, or None if transformers has the model."""
    entries, _ = PretrainedConfig.get_config_dict(checkpoint, **revision_kwargs(revision))
    reference = (entries.get("auto_map") or {}).get("AutoConfig")
    if reference is None or entries.get("model_type") in CONFIG_MAPPING:
        return None
    repository, found, _ = reference.partition("--")
    return repository if found else str(checkpoint)


def revision_kwargs(revision: str | None, code: str | None = None) -> dict[str, Any]:
    """Return arguments for transformers' Auto classes that pin the revisions of the weights and of permitted code."""
    arguments: dict[str, Any] = {"trust_remote_code": code is not None}
    if revision is not None:
        arguments["revision"] = revision
    if code is not None and "@" in code:
        arguments["code_revision"] = code.rpartition("@")[2]
    return arguments


def load_remote_code_model(checkpoint: str | Path, revision: str | None, code: str) -> nn.Module:
    """Load a model with the code of its repository, without its head if that code has a class for it; not yet cast.

    The constructor runs on the CPU, and the stored weights are copied into the module. transformers 5 itself would
    construct the module on the meta device, and leave uninitialised memory in buffers that are not stored unless the
    model's code recomputes them. Code written for earlier versions does not: gLM2's rotary frequencies and norm
    constants, for example.
    """
    module = construct(checkpoint, revision, code)
    stored = stored_tensors(checkpoint_folder(checkpoint, revision))
    fill(module, (_without_head_prefix(part, module) for part in stored), checkpoint)
    return module


def construct(checkpoint: str | Path, revision: str | None, code: str | None) -> nn.Module:
    """Return a model with random weights on torch's current default device; `code` is remote code to use, if any."""
    options = revision_kwargs(revision, code)
    config = AutoConfig.from_pretrained(checkpoint, **options)
    if code is None:
        return AutoModel.from_config(config)
    del options["trust_remote_code"]
    return get_class_from_dynamic_module(_model_class(config), checkpoint, **options)(config)


def _model_class(config: Any) -> str:
    """Return the class that config.json names for AutoModel, or otherwise the one that was saved."""
    named = {auto: str(path) for auto, path in config.auto_map.items() if auto.startswith("AutoModel")}
    saved = [path for path in named.values() if path.rpartition(".")[2] in (config.architectures or ())]
    candidates = [named[auto] for auto in ("AutoModel",) if auto in named] + saved + list(named.values())
    if not candidates:
        raise ValueError(f"the auto_map in config.json of {config.name_or_path} names no model class")
    return candidates[0]


def _without_head_prefix(tensors: dict[str, Tensor], module: Any) -> dict[str, Tensor]:
    """Return `tensors` with the names in `module`, if they were stored as part of a model with a head."""
    base = module.base_model_prefix
    if not base or hasattr(module, base):
        return tensors
    return {name.removeprefix(f"{base}."): tensor for name, tensor in tensors.items()}
