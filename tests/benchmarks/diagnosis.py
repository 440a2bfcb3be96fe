"""What a diagnosis of all layers takes beside what it cannot do without: a forward pass, and a product a layer."""

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.diagnosis.api import diagnose_tokens
from sae_outliers.diagnosis.layer import Settings, initial_sae
from sae_outliers.diagnosis.model import layer_tokens
from sae_outliers.runs.activations import stream_of
from sae_outliers.runs.layer_spec import layers_of
from sae_outliers.sae.kernels import pre_activation_chunks
from sae_outliers.stats.transforms import postln
from tests.benchmarks.extraction import backbone_at_hand
from tests.benchmarks.plan import Plan
from tests.benchmarks.timing import seconds_of
from tests.conftest import composed


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per case, each timed once; `ratio` is to the first two together. Empty without the model's package."""
    size = plan.size
    cfg = composed(f"model={plan.extraction_model}", "train=none", f"n_eval={plan.diagnosis_tokens}")
    stream = replace(stream_of(cfg), device=device)
    backbone = backbone_at_hand(stream)
    if backbone is None:
        return pd.DataFrame()
    layers = layers_of(cfg.model, "all")
    tokens: dict[int, Tensor] = {}
    saes = {}

    def forward() -> None:
        tokens.update(layer_tokens(cfg, stream, backbone, layers))

    @torch.no_grad()
    def products() -> None:
        for x in tokens.values():
            sae = saes[x.shape[1]]
            for chunk in x.split(size.batch):
                for _ in pre_activation_chunks(chunk.to(device), sae.W_enc, sae.b_enc):
                    pass

    @torch.no_grad()
    def diagnosis() -> None:
        for _, x in layer_tokens(cfg, stream, backbone, layers):
            diagnose_tokens(x, Settings(saes[x.shape[1]], postln, "postln", device, 0), None)

    seconds = {"forward": seconds_of(forward, device)}
    for width in {x.shape[1] for x in tokens.values()}:
        saes[width] = initial_sae(width, size.n_features, size.k, 0, device)
    seconds |= {"products": seconds_of(products, device)}
    tokens.clear()
    seconds |= {"diagnosis": seconds_of(diagnosis, device)}
    least = seconds["forward"] + seconds["products"]
    rows = [
        {"case": "a forward pass that keeps every layer's tokens", "seconds": seconds["forward"]},
        {"case": f"one product for each of {len(layers)} layer(s)", "seconds": seconds["products"]},
        {"case": "the diagnosis, four centerings", "seconds": seconds["diagnosis"]},
    ]
    return pd.DataFrame([row | {"ratio": float(row["seconds"]) / least} for row in rows])
