"""An SAE on the evaluation tokens: fates, and FVU, L0 and what is active in the same pass where they are wanted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.dead_features import FateCounter
from sae_outliers.sae.kernels import choose_topk, decode, pre_activation_chunks
from sae_outliers.stats.centering import Affine
from sae_outliers.stats.moments import Moments


@dataclass(frozen=True)
class Evaluation:
    fates: FateCounter
    active: Tensor  # int64 [n_features]: tokens on which the SAE itself has each feature active
    fvu: float  # Σ||x - x̂||² / Σ||x - μ||², on the preprocessed activations, whatever the centering
    l0: float  # mean number of active features of a token

    @property
    def dead_pct(self) -> float:
        """Percent of features that the SAE itself has active on no token; for TopK this is dead by TopK."""
        return 100 * (self.active == 0).double().mean().item()


class SelectionChange(NamedTuple):
    """What choosing by bfloat16 changes: percent of positive selections and of tokens, and the FVU's change."""

    pct_changed: float
    pct_tokens_changed: float
    fvu_change: float


def fate_counter(sae: SparseAutoencoder) -> FateCounter:
    return FateCounter(sae.n_features, sae.k, sae.W_enc.device)


@torch.no_grad()
def count_fates(counter: FateCounter, sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor]) -> None:
    """Take tokens into the counter; the decoder is spared. Arguments as in `evaluate`."""
    for _, pre in _pre_activations(sae, centering, tokens):
        counter.update(pre)


@torch.no_grad()
def evaluate(sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor], variance: float) -> Evaluation:
    """`tokens` are chunks [tokens, d_model] of preprocessed activations; `variance` is their Σσ² over dimensions."""
    counter = fate_counter(sae)
    active = torch.zeros_like(counter.selected)
    error = 0.0
    for x, pre in _pre_activations(sae, centering, tokens):
        counter.update(pre)
        z_hat, now_active = sae.reconstruct(pre)
        active += now_active
        error += (x - centering.undo(z_hat)).double().square().sum().item()
    fvu = error / (counter.n_tokens * variance)
    return Evaluation(counter, active, fvu, active.sum().item() / counter.n_tokens)


@torch.no_grad()
def compare_selection(sae: TopK, tokens: Iterable[Tensor]) -> SelectionChange:
    """Compare `precision=bf16_select` with float32 on chunks [tokens, d_model] of what the SAE is given."""
    selections = lost = tokens_changed = n_tokens = 0
    errors = {"float32": 0.0, "bf16_select": 0.0}
    total = Moments()
    for z in tokens:
        codes = {p: choose_topk(z - sae.b_dec, sae.W_enc, sae.b_enc, sae.k, p) for p in errors}
        exact, cheap = (code.indices.view(-1, sae.k, 1) for code in codes.values())
        positive = codes["float32"].values.view(-1, sae.k) > 0
        missed = positive & (exact != cheap.transpose(1, 2)).all(2)
        selections, lost = selections + int(positive.sum()), lost + int(missed.sum())
        tokens_changed, n_tokens = tokens_changed + int(missed.any(1).sum()), n_tokens + len(z)
        total.update(z)
        for precision, code in codes.items():
            z_hat = decode(code._replace(values=code.values.relu()), sae.W_dec) + sae.b_dec
            errors[precision] += (z - z_hat).double().square().sum().item()
    change = (errors["bf16_select"] - errors["float32"]) / (total.variance.sum().item() * n_tokens)
    return SelectionChange(100 * lost / selections, 100 * tokens_changed / n_tokens, change)


def _pre_activations(
    sae: SparseAutoencoder, centering: Affine, chunks: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens [tokens, d_model] with their pre-activations, few enough at a time for these to stay small."""
    for chunk in chunks:
        first = 0
        for pre in pre_activation_chunks(centering.apply(chunk) - sae.b_dec, sae.W_enc, sae.b_enc):
            yield chunk[first : first + len(pre)], pre
            first += len(pre)
