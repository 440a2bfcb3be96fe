"""python -m sae_outliers.export run=<folder of a run> format=saelens to=<folder>: a trained SAE for another library.

    saelens               cfg.json, sae_weights.safetensors    SAE.load_from_disk (SAELens v6)
    dictionary_learning   config.json, ae.pt                   dictionary_learning.utils.load_dictionary
    sparsify              cfg.json, sae.safetensors            SparseCoder.load_from_disk
                          sae_outliers.json

The centering is folded into the weights. The preprocessing is not: as a function of each token it stays with whoever
reads the files, and the command and the files' metadata say what it is.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.io import fold, load_sae
from sae_outliers.stats.centering import Affine
from sae_outliers.utils.files import atomic_write, write_json

SAELENS_VERSION = "6.54.0"  # whose files these are; without a version from 6 on, SAELens takes them for older ones

Files = dict[str, Any]  # JSON or tensors by file name; the config comes last, so that with it the SAE is complete


@dataclass(frozen=True)
class Request:
    run: str
    format: str
    to: str


def main(arguments: Sequence[str]) -> None:
    try:
        print(export_run(parse(arguments)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


def parse(arguments: Sequence[str]) -> Request:
    """Raises ValueError unless each field of Request is given once, as name=value, and nothing else."""
    given = [argument.partition("=") for argument in arguments]
    names = [field.name for field in fields(Request)]
    if sorted(name for name, _, value in given if value) != sorted(names) or len(given) != len(names):
        usage = "run=<folder of a run> format=<format> to=<folder>"
        raise ValueError(
            f"Expected {usage}, got {' '.join(arguments) or 'no arguments'}; formats: {', '.join(FORMATS)}"
        )
    return Request(**{name: value for name, _, value in given})


def export_run(request: Request) -> str:
    """Export the SAE of a run; what was written and how to read it, in two lines.

    Raises:
        FileNotFoundError: the run's folder holds no SAE.
        ValueError: as `export`.
    """
    path = Path(request.run) / "sae.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a run that trained an SAE")
    sae, centering = load_sae(path)
    described = description(path)
    written = export(sae, centering, described, request.format, Path(request.to))
    return f"{request.to}: {', '.join(written)}\n{reading(described)}"


def description(path: Path) -> dict[str, Any]:
    """What `save_sae` was told about the SAE: columns of its run's record."""
    with safe_open(path, framework="pt") as file:
        described: dict[str, Any] = json.loads(file.metadata()["described"])
    return described


def export(
    sae: SparseAutoencoder, centering: Affine, described: dict[str, Any], format: str, to: Path
) -> Sequence[str]:
    """Write the SAE, its centering folded in, as the files of `format` into the folder `to`; their names.

    `described` are columns of the run's record (JSON), for the files' metadata.

    Raises:
        ValueError: an unknown format, a type of SAE that it cannot hold, a BatchTopK SAE without a threshold, or a
            folder with something in it. Nothing is written.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format} does not exist: use one of {', '.join(FORMATS)}")
    if not isinstance(sae, HOLDS[format]):
        able = [name for name, kinds in HOLDS.items() if isinstance(sae, kinds)]
        instead = f"use format={' or '.join(able)}" if able else "no other format can"
        raise ValueError(f"format={format} cannot hold a {type(sae).__name__} SAE: {instead}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"to={to} exists and is not an empty folder: name another, or remove it first")
    files = FORMATS[format](fold(sae, centering), described)
    for name, content in files.items():
        _write(to / name, content)
    return list(files)


def reading(described: dict[str, Any]) -> str:
    """What the SAE expects that the files do not do, in a sentence."""
    name = described.get("preprocessing", "unknown")
    if name == "raw":
        return "The SAE reads and reconstructs activations as the model has them: there is nothing to apply before."
    return (
        "The SAE reads and reconstructs preprocessed activations, and these files do not preprocess: "
        f"before, apply {PREPROCESSING.get(name, f'preprocessing={name}')}."
    )


PREPROCESSING = {"postln": "LayerNorm without affine over each token (eps 1e-5), times sqrt(d_model)"}


# --- the formats, each from an SAE whose centering is folded in -----------------------------------------


def saelens(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """SAELens v6. BatchTopK and Matryoshka become jumprelu, as SAELens itself saves them."""
    tensors: dict[str, Tensor] = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    options: dict[str, Any] = {}
    match sae:
        case TopK():
            architecture, options = "topk", {"k": sae.k, "rescale_acts_by_decoder_norm": False}
        case BatchTopK():
            architecture = "jumprelu"
            tensors["threshold"] = torch.ones_like(sae.b_enc) * _threshold(sae)
        case JumpReLU():
            architecture = "jumprelu"
            tensors["threshold"] = sae.threshold * sae.unit
        case Gated():
            architecture = "gated"
            tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": sae.b_mag, "r_mag": sae.r_mag}
        case _:
            architecture = "standard"
    config = {
        "architecture": architecture,
        "d_in": sae.d_model,
        "d_sae": sae.n_features,
        **options,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # no hook_name: at a hook, SAELens would feed the SAE activations that are not preprocessed
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": described.get("model"),
            "sae_outliers": _origin(described),
        },
    }
    return {"sae_weights.safetensors": tensors, "cfg.json": config}


def dictionary_learning(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """dictionary_learning's classes.

    JumpReluAutoEncoder, once loaded, and AutoEncoderNew do not subtract b_dec from their input: their encoder bias
    does it. AutoEncoder's loader brings decoder rows to unit norm, and features with them, so a ReLU SAE whose rows
    are not at unit norm becomes an AutoEncoderNew.
    """
    matrices: dict[str, Tensor] = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    linear = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
    with_bias = linear | {"encoder.bias": sae.b_enc}
    options: dict[str, Any] = {}
    match sae:
        case TopK():
            name, options = "AutoEncoderTopK", {"k": sae.k}
            tensors = with_bias | {"b_dec": sae.b_dec, "k": _int(sae.k), "threshold": torch.tensor(-1.0)}
        case Matryoshka():
            name, options = "MatryoshkaBatchTopKSAE", {"k": sae.k}
            sizes = torch.tensor([0, *sae.ends]).diff()
            tensors = matrices | {"k": _int(sae.k), "threshold": _threshold(sae), "group_sizes": sizes}
        case BatchTopK():
            name, options = "BatchTopKSAE", {"k": sae.k}
            tensors = with_bias | {"b_dec": sae.b_dec, "k": _int(sae.k), "threshold": _threshold(sae)}
        case JumpReLU():
            name = "JumpReluAutoEncoder"
            tensors = matrices | {"b_enc": _bias_on_x(sae), "threshold": sae.threshold * sae.unit}
        case Gated():
            name = "GatedAutoEncoder"
            biases = {"gate_bias": sae.b_enc, "mag_bias": sae.b_mag, "decoder_bias": sae.b_dec}
            tensors = linear | biases | {"r_mag": sae.r_mag}
        case _ if _has_unit_norm(sae):
            name = "AutoEncoder"
            tensors = with_bias | {"bias": sae.b_dec}
        case _:
            name = "AutoEncoderNew"
            tensors = linear | {"encoder.bias": _bias_on_x(sae), "decoder.bias": sae.b_dec}
    trainer = {
        "dict_class": name,
        "activation_dim": sae.d_model,
        "dict_size": sae.n_features,
        **options,
        "lm_name": described.get("model"),
        "layer": described["layer"] - 1 if "layer" in described else None,  # there, blocks count from 0
    }
    buffer = {"d_submodule": sae.d_model, "io": "out", "ctx_len": None}  # SAELens' reader asks for ctx_len
    return {"ae.pt": tensors, "config.json": {"trainer": trainer, "buffer": buffer, "sae_outliers": _origin(described)}}


def sparsify(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """EleutherAI's sparsify. Its cfg.json has no place for metadata, and its loader prints every key it drops."""
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    config = {
        "activation": "groupmax" if isinstance(sae, GroupMax) else "topk",
        "normalize_decoder": _has_unit_norm(sae),  # what further training there would enforce
        "num_latents": sae.n_features,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_model,
    }
    return {"sae.safetensors": tensors, "sae_outliers.json": _origin(described), "cfg.json": config}


FORMATS: dict[str, Callable[[SparseAutoencoder, dict[str, Any]], Files]] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
HOLDS: dict[str, tuple[type[SparseAutoencoder], ...]] = {
    "saelens": (TopK, BatchTopK, JumpReLU, Gated, ReLU),
    "dictionary_learning": (TopK, BatchTopK, JumpReLU, Gated, ReLU),
    "sparsify": (TopK, GroupMax),
}


def _origin(described: dict[str, Any]) -> dict[str, Any]:
    return {"reading": reading(described), **described}


def _threshold(sae: BatchTopK) -> Tensor:
    """Scalar. Raises ValueError if training has not set it: the formats have no other rule for a single token."""
    if not 0 <= sae.threshold < math.inf:
        name, value = type(sae).__name__, sae.threshold.item()
        raise ValueError(f"This {name} SAE has no threshold ({value}): training sets it, so train it first")
    return sae.threshold


def _bias_on_x(sae: SparseAutoencoder) -> Tensor:
    """The b with x @ W_enc + b the pre-activations of x: b_enc - b_dec @ W_enc, [n_features]."""
    return (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()


def _has_unit_norm(sae: SparseAutoencoder) -> bool:
    """Whether all decoder rows have, closer than dictionary_learning's loader asks (1e-5)."""
    return bool((sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6)


def _int(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def _write(path: Path, content: dict[str, Any]) -> None:
    if path.suffix == ".json":
        return write_json(path, content)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}
    with atomic_write(path) as beside:
        torch.save(tensors, beside) if path.suffix == ".pt" else save_file(tensors, beside)


if __name__ == "__main__":
    main(sys.argv[1:])
