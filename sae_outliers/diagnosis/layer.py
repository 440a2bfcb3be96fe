"""One layer's diagnosis: severity, the fates of an SAE at initialisation under each centering, and the verdict."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from sae_outliers.diagnosis.centering import Centering
from sae_outliers.diagnosis.condition import Condition, condition_of
from sae_outliers.diagnosis.result import Diagnosis, Recommendation
from sae_outliers.diagnosis.severity import chunks, severity_of
from sae_outliers.diagnosis.verdict import verdict
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.evaluation import alignment, fate_counter
from sae_outliers.sae.shared_product import SharedProduct
from sae_outliers.stats.moments import Moments, geometric_median
from sae_outliers.stats.transforms import CENTERINGS, Affine, Preprocessing

ENOUGH_TOKENS = 2048  # for the share of tokens on which a feature is active, where no fate asks for more
MEDIAN_TOLERANCE = 1e-4  # of the tokens' mean distance: far below what a median of a sample is uncertain by


@dataclass(frozen=True)
class Settings:
    """What a diagnosis measures with.

    Attributes:
        sae: the SAE at initialisation, on the device; layers of one width share it.
        preprocessing: the name of `preprocess`, for messages and files.
        seed: what the SAE was drawn by.
    """

    sae: SparseAutoencoder
    preprocess: Preprocessing
    preprocessing: str
    device: torch.device
    seed: int


def initial_sae(d_model: int, n_features: int, k: int, seed: int, device: torch.device) -> SparseAutoencoder:
    """Return the paper's SAE before training. Raises ValueError for a k beyond n_features."""
    if not 1 <= k <= n_features:
        raise ValueError(f"k={k} must lie between 1 and n_features={n_features}")
    return TopK(d_model, n_features, k, seed=seed).to(device)


def diagnose_layer(tokens: Tensor, settings: Settings) -> tuple[Diagnosis, Moments]:
    """Diagnose tokens [n, d_model] as the network put them out. Return the moments of the preprocessed ones too.

    Raises:
        ValueError: none of the dimensions varies.
    """
    severity, m = severity_of(tokens, settings.preprocess, settings.device)
    centerings = _centerings(tokens, m, settings)
    conditions = _conditions(tokens, m, centerings, settings)
    decided = verdict(conditions)
    sae = settings.sae
    diagnosis = Diagnosis(
        severity=severity,
        conditions=conditions,
        recommended=Recommendation(
            decided,
            Centering(centerings[decided.centering], decided.centering, settings.preprocessing),
        ),
        features=_features(conditions, sae, m),
        n_tokens=len(tokens),
        d_model=tokens.shape[1],
        n_features=sae.n_features,
        k=sae.k,
        preprocessing=settings.preprocessing,
        seed=settings.seed,
    )
    return diagnosis, m


def _centerings(tokens: Tensor, m: Moments, settings: Settings) -> dict[str, Affine]:
    def read() -> Iterator[Tensor]:
        return chunks(tokens, settings.preprocess, settings.device)

    median = geometric_median(read, m.mean, MEDIAN_TOLERANCE)
    return {
        "off": CENTERINGS["off"](m),
        "mean": CENTERINGS["on"](m),
        "geometric_median": Affine(median.float()),
        "whiten": CENTERINGS["whiten"](m),
    }


def _conditions(
    tokens: Tensor, m: Moments, centerings: Mapping[str, Affine], settings: Settings
) -> dict[str, Condition]:
    """Count fates: of the centerings that only shift with one product, of whitening with a second."""
    sae, whiten = settings.sae, centerings["whiten"]
    counters = {name: fate_counter(sae) for name in centerings}
    shifted = SharedProduct(sae.W_enc, m.mean, ENOUGH_TOKENS)
    for name, affine in centerings.items():
        if affine.linear is None:
            shifted.add(counters[name], sae, affine)
    nothing = Affine(torch.zeros_like(whiten.shift))
    whitened = SharedProduct(sae.W_enc, nothing.shift, ENOUGH_TOKENS)
    whitened.add(counters["whiten"], sae, nothing)
    for x in chunks(tokens, settings.preprocess, settings.device):
        shifted.update(x)
        if not whitened.is_settled:
            whitened.update(whiten.apply(x))
    return {
        name: condition_of(counters[name], m.mapped(affine.shift, affine.linear).gamma)
        for name, affine in centerings.items()
    }


def _features(conditions: Mapping[str, Condition], sae: SparseAutoencoder, m: Moments) -> pd.DataFrame:
    """A row per feature: cos(encoder direction, μ), and by centering its fate and how often it is selected."""
    columns = {"alignment": alignment(sae.W_enc.detach(), m.mean).cpu().numpy()}
    for name, condition in conditions.items():
        columns |= {f"fate_{name}": condition.fates, f"active_{name}": condition.active}
    return pd.DataFrame(columns).rename_axis("feature").reset_index()
