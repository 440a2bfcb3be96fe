"""saev: sae.pt, one line of JSON and then a state_dict of torch.save.

The line holds schema, cfg, commit and lib; its encoder does not subtract b_dec, and an activation's settings come by
the name of their class. Version 0.1.0, the one on PyPI, wrote the config alone, of a ReLU SAE that does subtract b_dec.
"""

import json
from pathlib import Path
from typing import Any

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.readers.base import READERS, Reader, filled, k_of, state_dict_of, take
from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder

FILE = "sae.pt"
NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
OLD = {"d_vit", "exp_factor"}  # in the line that saev 0.1.0 wrote
HEADER_BYTES = 1 << 20  # more than any header has; a file without a line ending is not read whole


def is_saevs(place: Path) -> bool:
    path = place / FILE if place.is_dir() else place
    return path.is_file() and path.suffix == ".pt" and _header(path) is not None


def _header(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        line = file.readline(HEADER_BYTES)
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and ("cfg" in found or set(found) >= OLD) else None


def read(place: Path) -> LoadedSae:
    path = place / FILE if place.is_dir() else place
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)
    old = "cfg" not in header
    cfg = header if old else header["cfg"]
    name, options = _activation(header)
    tensors = state_dict_of(path, rest)
    weights = take(tensors, NAMES, path)
    n_features, d_model = weights["W_dec"].shape
    match name:
        case "TopK":
            sae: SparseAutoencoder = TopK(d_model, n_features, k=int(options.get("top_k", cfg.get("top_k", 32))))
        case "BatchTopK":
            sae = BatchTopK(d_model, n_features, k=int(options.get("top_k", cfg.get("top_k", 32))))
            weights |= take(tensors, {"threshold": "activation.threshold"}, path)
        case "Relu":
            sae = ReLU(d_model, n_features, k=k_of(n_features))
        case _:
            raise ValueError(f"{path}: the activation {name} is not read: Relu, TopK and BatchTopK are")
    return LoadedSae(filled(sae, weights, path, subtracts_b_dec=old), f"saev {name} SAE in {path}")


def _activation(header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class and the settings of the activation; the first schema had the class beside the config."""
    activation = header.get("cfg", {}).get("activation")
    if isinstance(activation, dict) and "cls" in activation:
        return activation["cls"], activation.get("params", {})
    return header.get("cls", "Relu"), {}


READERS.register("saev")(Reader(f"{FILE} with a first line of JSON", is_saevs, read))
