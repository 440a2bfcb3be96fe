"""What capturing and storing every layer costs beside a plain forward pass over the same tokens."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from sae_outliers.activations.extract import Shards
from sae_outliers.activations.layer_files import LayerFiles
from sae_outliers.activations.stream import TokenStream
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.runs.activations import stream_of
from sae_outliers.runs.layer_spec import layers_of
from tests.benchmarks.plan import Plan
from tests.benchmarks.timing import Case, interleaved
from tests.conftest import composed

PLAIN = "forward pass alone"


def backbone_at_hand(stream: TokenStream) -> Backbone | None:
    """Return the network of a stream; None without the package that carries it."""
    try:
        return stream.load_backbone()
    except (FileNotFoundError, ModuleNotFoundError):
        return None


def table(plan: Plan, device: torch.device) -> pd.DataFrame:
    """A row per case; `ratio` is its median time over that of the forward pass. Empty without the model's package."""
    cfg = composed(f"model={plan.extraction_model}", "layer=all")
    stream = replace(stream_of(cfg), device=device)
    backbone = backbone_at_hand(stream)
    if backbone is None:
        return pd.DataFrame()
    inputs = [batch.to(device) for batch in islice(stream.batches(backbone), plan.extraction_batches)]
    timings = interleaved(cases(stream, backbone, inputs, layers_of(cfg.model, "all")), plan.rounds, device)
    return pd.DataFrame(
        {
            "case": name,
            **timing.columns(),
            "ratio": timing.median / timings[PLAIN].median,
        }
        for name, timing in timings.items()
    )


def cases(stream: TokenStream, backbone: Backbone, inputs: Sequence[Batch], layers: Sequence[int]) -> dict[str, Case]:
    """The forward pass first, which has been run once."""

    @torch.inference_mode()
    def forward() -> None:
        for batch in inputs:
            backbone.module(**batch.inputs)

    def capture() -> None:
        for batch in inputs:
            stream.rows(backbone, batch, layers)

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            shards = Shards({layer: LayerFiles(Path(folder), layer, "float32") for layer in layers})
            for batch in inputs:
                shards.add(stream.rows(backbone, batch, layers))
            shards.write()

    forward()  # warming up
    return {PLAIN: forward, f"capturing {len(layers)} layer(s)": capture, "and storing them": store}
