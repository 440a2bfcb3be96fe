"""dictionary_learning: config.json and ae.pt, read by dictionary_learning.utils.load_dictionary."""

from typing import Any

import torch
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.matryoshka import Matryoshka
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.export.base import Files, exporter, has_unit_norm, inference_threshold, origin


@exporter("dictionary_learning", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
def dictionary_learning(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """Make the files, which name one of dictionary_learning's classes.

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
            tensors = matrices | {"k": _int(sae.k), "threshold": inference_threshold(sae), "group_sizes": sizes}
        case BatchTopK():
            name, options = "BatchTopKSAE", {"k": sae.k}
            tensors = with_bias | {"b_dec": sae.b_dec, "k": _int(sae.k), "threshold": inference_threshold(sae)}
        case JumpReLU():
            name = "JumpReluAutoEncoder"
            tensors = matrices | {"b_enc": _bias_on_x(sae), "threshold": sae.threshold * sae.unit}
        case Gated():
            name = "GatedAutoEncoder"
            biases = {"gate_bias": sae.b_enc, "mag_bias": sae.b_mag, "decoder_bias": sae.b_dec}
            tensors = linear | biases | {"r_mag": sae.r_mag}
        case _ if has_unit_norm(sae):
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
    return {"ae.pt": tensors, "config.json": {"trainer": trainer, "buffer": buffer, "sae_outliers": origin(described)}}


def _bias_on_x(sae: SparseAutoencoder) -> Tensor:
    """Return the b with x @ W_enc + b the pre-activations of x: b_enc - b_dec @ W_enc, [n_features]."""
    return (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()


def _int(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)
