"""An SAE on the evaluation tokens: fates, and FVU and L0 in the same pass where they are wanted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_outliers.centering import Affine
from sae_outliers.fates import FateCounter
from sae_outliers.sae.autoencoder import SparseAutoencoder

PRE_ACTIVATIONS_AT_ONCE = 1 << 25  # 128 MiB of float32


@dataclass(frozen=True)
class Evaluation:
    fates: FateCounter
    fvu: float  # Σ||x - x̂||² / Σ||x - μ||², on the preprocessed activations, whatever the centering
    l0: float  # mean number of active features of a token


@torch.no_grad()
def count_fates(sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor]) -> FateCounter:
    """The fates alone, which spare the decoder; arguments as in `evaluate`."""
    counter = FateCounter(sae.n_features, sae.k, sae.W_enc.device)
    for x in _fitting(sae, tokens):
        counter.update(sae.pre_activations(centering.apply(x)))
    return counter


@torch.no_grad()
def evaluate(sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor], variance: float) -> Evaluation:
    """`tokens` are chunks [tokens, d_model] of preprocessed activations; `variance` is their Σσ² over dimensions."""
    counter = FateCounter(sae.n_features, sae.k, sae.W_enc.device)
    error, active = 0.0, 0
    for x in _fitting(sae, tokens):
        pre = sae.pre_activations(centering.apply(x))
        counter.update(pre)
        z_hat, l0 = sae.decode_pre_activations(pre)
        error += (x - centering.undo(z_hat)).double().square().sum().item()
        active += int(l0.sum())
    return Evaluation(counter, error / (counter.n_tokens * variance), active / counter.n_tokens)


def _fitting(sae: SparseAutoencoder, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same tokens in chunks whose pre-activations keep within PRE_ACTIVATIONS_AT_ONCE."""
    for chunk in chunks:
        yield from chunk.split(max(1, PRE_ACTIVATIONS_AT_ONCE // sae.n_features))
