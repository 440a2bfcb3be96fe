"""EleutherAI's sparsify: cfg.json and sae.safetensors, read by SparseCoder.load_from_disk; and sae_outliers.json."""

from typing import Any

from sae_outliers.sae.architectures.groupmax import GroupMax
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.export.base import Files, exporter, has_unit_norm, origin


@exporter("sparsify", "topk", "groupmax")
def sparsify(sae: SparseAutoencoder, described: dict[str, Any]) -> Files:
    """Make the files. cfg.json has no place for metadata, and sparsify's loader prints every key it drops."""
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    config = {
        "activation": "groupmax" if isinstance(sae, GroupMax) else "topk",
        "normalize_decoder": has_unit_norm(sae),  # what further training there would enforce
        "num_latents": sae.n_features,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_model,
    }
    return {"sae.safetensors": tensors, "sae_outliers.json": origin(described), "cfg.json": config}
