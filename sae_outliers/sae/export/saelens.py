"""SAELens v6: cfg.json and sae_weights.safetensors, read by SAE.load_from_disk."""

from typing import Any

import torch
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.gated import Gated
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.export.base import Files, exporter, inference_threshold, origin

SAELENS_VERSION = "6.54.0"  # whose files these are; without a version from 6 on, SAELens takes them for older ones


@exporter("saelens", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
def saelens(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """Make the files; BatchTopK and Matryoshka become jumprelu, as SAELens itself saves them."""
    tensors: dict[str, Tensor] = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    options: dict[str, Any] = {}
    match sae:
        case TopK():
            architecture, options = "topk", {"k": sae.k, "rescale_acts_by_decoder_norm": False}
        case BatchTopK():
            architecture = "jumprelu"
            tensors["threshold"] = torch.ones_like(sae.b_enc) * inference_threshold(sae)
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
            "sae_outliers": origin(described),
        },
    }
    return {"sae_weights.safetensors": tensors, "cfg.json": config}
