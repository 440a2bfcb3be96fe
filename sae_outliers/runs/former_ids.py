"""The ids that runs and stores had in version 0.1, by which what was computed then is recognised.

They were digests of the whole config, nulls and the paths of classes included. Nothing here follows the schema or
the code as they are now: these keys and paths are those of that version, for ever.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_outliers.config import sae_seed_of
from sae_outliers.utils.files import digest, file_fingerprints
from sae_outliers.utils.instantiate import stable_name

SAES = {
    "topk": "topk.TopK",
    "batchtopk": "batchtopk.BatchTopK",
    "matryoshka": "matryoshka.Matryoshka",
    "groupmax": "groupmax.GroupMax",
    "relu": "relu.ReLU",
    "relu_april": "relu.ReLU",
    "jumprelu": "jumprelu.JumpReLU",
    "gated": "gated.Gated",
}
REVIVALS = {
    "none": "Revival",
    "auxk": "AuxK",
    "ghost_grads": "GhostGrads",
    "preact_loss": "PreactLoss",
    "resample": "Resample",
}
SAE_KEYS = ("name", "n_features", "k", "sparsity", "decoder_norm_weighted", "bandwidth", "prefixes")
INIT_KEYS = ("name", "b_dec", "rank", "blend")
REVIVAL_KEYS = ("name", "alpha", "k_aux", "coefficient", "every", "until", "encoder_norm")
TRAIN_KEYS = (
    *("steps", "batch_size", "n_tokens", "lr", "b_dec_lr", "warmup_steps", "decay_from", "eval_every", "dead_window"),
)
# arguments of sources that their yamls did not name then, so that they stood in a config only where they were given
UNNAMED = ("mask", "zeros", "on_error", "shape", "dtype", "encoding", "column")
FLOATS = ("sparsity", "bandwidth", "alpha", "coefficient", "encoder_norm")


def former_run_digests(config: Mapping[str, Any], layers: Iterable[int]) -> list[str]:
    """Return the id of each layer's run under a resolved config."""
    identity = {key: config[key] for key in ("preprocessing", "special_tokens", "n_eval", "seed")} | {
        "sae": _keys(config["sae"], SAE_KEYS) | {"_target_": _class("sae", SAES, config["sae"]["name"])},
        "init": _keys(config["init"], INIT_KEYS),
        "centering": _keys(config["centering"], ("name",)),
        "data": config["data"]["rescale_mean"],
        "sae_seed": sae_seed_of(config["seed"], config["sae_seed"]),
        "stream": _store_identity(config),
        "schema": 2,
    }
    if config["train"]["steps"]:
        target = _class("revival", REVIVALS, config["revival"]["name"])
        identity |= {
            "train": _keys(config["train"], TRAIN_KEYS),
            "revival": _keys(config["revival"], REVIVAL_KEYS) | {"_target_": target},
            "precision": config["precision"],
        }
    return [digest(identity | {"layer": layer}) for layer in layers]


def former_store_digest(config: Mapping[str, Any]) -> str:
    """Return the digest in the name of the store of activations that a resolved config reads."""
    return digest(_store_identity(config))


def _store_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    loader = {key: value for key, value in config["model"]["loader"].items() if key != "trust_remote_code"}
    data = _keys(config["data"], ("name", "source", "tokens_per_item"))
    source = {key: value for key, value in data["source"].items() if value is not None or key not in UNNAMED}
    local = [Path(place).expanduser() for place in (config["path"], config["name"]) if place]
    return {
        "model": config["model"]["name"],
        "loader": _with_stable_names(loader),
        "data": _with_stable_names(data | {"source": source}),
        "seed": config["seed"],
        "format": 2,
        "files": [file_fingerprints(place) for place in local if place.exists()],
    }


def _keys(node: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """These keys of a node, null where it lacks one, with numbers of the types that the schema gave them."""
    return {key: _typed(key, node.get(key)) for key in keys}


def _typed(key: str, value: Any) -> Any:
    if key == "prefixes" and value is not None:
        return [float(part) for part in value]
    return float(value) if key in FLOATS and value is not None else value


def _class(module: str, classes: Mapping[str, str], name: str) -> str:
    return f"sae_outliers.{module}.{classes[name]}" if name in classes else name


def _with_stable_names(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_stable_names(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {key: stable_name(value) if key == "_target_" else _with_stable_names(value) for key, value in node.items()}
