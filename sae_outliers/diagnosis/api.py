"""`sae_outliers.diagnose`: the diagnosis of activations that somebody has."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_outliers.diagnosis.layer import Settings, diagnose_layer, initial_sae
from sae_outliers.diagnosis.loaded import NORMALISATIONS, LoadedSae
from sae_outliers.diagnosis.readers.base import read_sae
from sae_outliers.diagnosis.result import Diagnosis
from sae_outliers.diagnosis.severity import chunks
from sae_outliers.diagnosis.tokens import gather
from sae_outliers.diagnosis.trained import diagnose_trained
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.utils.device import resolve_device

N_FEATURES, K, TOKENS = 8192, 64, 20_000  # the paper's size, and as many tokens as a run takes

Activations = Tensor | np.ndarray | Iterable[Any]


@torch.no_grad()
def diagnose(
    activations: Activations,
    *,
    mask: Tensor | np.ndarray | None = None,
    n_features: int | None = None,
    k: int | None = None,
    sae: str | Path | SparseAutoencoder | None = None,
    preprocessing: str | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    device: str = "auto",
) -> Diagnosis:
    """Say whether an SAE would lose features on these activations, why, and what to do (arXiv 2605.31518).

    Args:
        activations: a tensor or array [tokens, d_model] or [batch, tokens, d_model], or an iterable of such, as a
            DataLoader is; of its elements that are tuples the first entry counts, and a second one that is bool is a
            mask.
        mask: bool [batch, tokens], True at tokens; None: all are.
        n_features, k: the SAE's size, 8192 and 64 unless `sae` says otherwise.
        sae: a trained SAE, as the folder that SAELens, dictionary_learning, sparsify, saev or a run of ours wrote, or
            one of our SAEs.
        preprocessing: what is done to each token first: `raw` (nothing: the activations are as the SAE is given them),
            `postln` (the paper's) or what another library calls `layer_norm`, `constant_norm_rescale` or `unit_norm`.
            None: as the trained SAE's config declares, else raw.
        tokens: at most so many are read and held: spread over an array, the first of a stream.
        seed: of the directions of the SAE at initialisation.
        device: auto, cpu or cuda.

    Returns:
        The diagnosis, which shows itself as a table; `.save_page()` writes a page of figures.
        `.recommended.centering` is a module: centering(x) maps x [tokens, d_model] to what the SAE should be given.

    Raises:
        TypeError: the activations are neither tensors nor an iterable of them.
        ValueError: shapes that do not fit, a value that is not finite, a layer that does not vary, an SAE that cannot
            be read or is of another width.
    """
    if tokens < 2:
        raise ValueError(f"tokens={tokens}: at least 2 are needed, and several thousand for a verdict")
    loaded = loaded_sae(sae)
    held = gather(activations, mask, tokens)
    settings = settings_for(held.shape[1], n_features, k, loaded, preprocessing, seed, resolve_device(device))
    return diagnose_tokens(held, settings, loaded)


def loaded_sae(sae: str | Path | SparseAutoencoder | None) -> LoadedSae | None:
    """Return the SAE that was given, read where it is a path. Raises as `read_sae`."""
    if sae is None or isinstance(sae, str | Path):
        return None if sae is None else read_sae(sae)
    if isinstance(sae, SparseAutoencoder):
        return LoadedSae(sae, f"this {type(sae).__name__} SAE")
    raise TypeError(f"sae is a {type(sae).__name__}: give the folder of its files, or an SAE of sae_outliers")


def settings_for(
    d_model: int,
    n_features: int | None,
    k: int | None,
    loaded: LoadedSae | None,
    preprocessing: str | None,
    seed: int,
    device: torch.device,
) -> Settings:
    """Return what tokens of width d_model are diagnosed with. Raises ValueError where the SAE does not fit them."""
    if loaded is not None:
        if loaded.sae.d_model != d_model:
            raise ValueError(
                f"{loaded.source} is for activations of width {loaded.sae.d_model}, but these have {d_model}: is it "
                "of another layer or model?"
            )
        n_features, k = n_features or loaded.sae.n_features, k or loaded.sae.k
        preprocessing = preprocessing or loaded.preprocessing
    name = preprocessing or "raw"
    if name not in NORMALISATIONS:
        raise ValueError(f"preprocessing={name} does not exist: use one of {', '.join(NORMALISATIONS)}")
    initial = initial_sae(d_model, n_features or N_FEATURES, k or K, seed, device)
    return Settings(initial, NORMALISATIONS[name], name, device, seed)


def diagnose_tokens(held: Tensor, settings: Settings, loaded: LoadedSae | None) -> Diagnosis:
    """Diagnose tokens [n, d_model], and a trained SAE on them. Raises ValueError as `diagnose`."""
    diagnosis, m = diagnose_layer(held, settings)
    if loaded is None:
        return diagnosis
    trained = diagnose_trained(
        loaded.to(settings.device),
        lambda: chunks(held, settings.preprocess, settings.device),
        m,
        diagnosis.verdict,
    )
    return replace(diagnosis, trained=trained, more_notes=(*diagnosis.more_notes, *loaded.notes))
