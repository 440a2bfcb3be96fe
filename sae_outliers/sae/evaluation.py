"""Evaluation of an SAE: which features are alive, dead by TopK or dead by ReLU, its FVU and L0, and their alignment."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.results.features import Fate
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.kernels import choose_topk, count, decode, largest, pre_activation_chunks
from sae_outliers.stats.moments import Moments
from sae_outliers.stats.transforms import Affine

ALWAYS_ON = 0.9  # share of the tokens on which a feature is active, above which it counts as always on


class FateCounter:
    """Counts over chunks of pre-activations how high each feature gets, and on how many tokens it is selected.

    Attributes:
        highest: float32 [n_features], the largest pre-activation of each feature on any token.
        selected: int64 [n_features], tokens on which it is > 0 and among the token's k largest.
    """

    def __init__(self, n_features: int, k: int, device: torch.device | str = "cpu") -> None:
        self.k = k
        self.n_tokens = 0
        self.highest = torch.full((n_features,), -torch.inf, device=device)
        self.selected = torch.zeros(n_features, dtype=torch.int64, device=device)

    def update(self, pre: Tensor, highest: Tensor | None = None) -> None:
        """Take in pre-activations [tokens, n_features], and their largest by feature [n_features] if it is known."""
        self.n_tokens += len(pre)
        self.highest = torch.maximum(self.highest, pre.amax(0) if highest is None else highest)
        values, indices = largest(pre, self.k)
        self.selected += count(indices, values > 0, len(self.selected))

    @property
    def fates(self) -> Tensor:
        """Return a `Fate` for each feature, int8 [n_features]."""
        fates = torch.full_like(self.selected, Fate.ALIVE, dtype=torch.int8)
        fates[self.selected == 0] = Fate.NEVER_SELECTED
        fates[self.highest <= 0] = Fate.NEVER_POSITIVE
        return fates

    @property
    def dead_pct_topk(self) -> float:
        """Return the percentage of features that are never selected, those never positive included."""
        return 100 * (self.selected == 0).double().mean().item()

    @property
    def dead_pct_relu(self) -> float:
        """Return the percentage of features that are never positive."""
        return 100 * (self.highest <= 0).double().mean().item()


@dataclass(frozen=True)
class Evaluation:
    fates: FateCounter
    active: Tensor  # int64 [n_features]: tokens on which the SAE itself has each feature active
    fvu: float  # Σ||x - x̂||² / Σ||x - μ||², on the preprocessed activations, whatever the centering
    l0: float  # mean number of active features of a token
    mean_x_hat: Tensor  # mean reconstruction, in the space of the preprocessed activations, float64 [d_model]

    @property
    def always_on(self) -> Tensor:
        """Return which features are active on more than 90 % of the tokens, bool [n_features]."""
        return self.active > ALWAYS_ON * self.fates.n_tokens

    @property
    def always_on_l0_pct(self) -> float:
        """Return the share of `always_on` features in L0, in percent; 0 where nothing is active."""
        return 100 * self.active[self.always_on].sum().item() / max(1, self.active.sum().item())

    @property
    def dead_pct(self) -> float:
        """Return the percentage of features that the SAE has active on no token; for TopK this is dead by TopK."""
        return 100 * (self.active == 0).double().mean().item()


@dataclass(frozen=True)
class Bias:
    """How far the bias has come on its way to the mean, both in the space of the preprocessed activations.

    The centering's shift counts as part of the bias.
    """

    distance: float  # ||b_dec - μ|| / ||μ||
    cos: float
    mean_in_bias: float  # b_dec · μ / ||μ||²
    mean_in_features: float  # likewise of the mean reconstruction without b_dec


class SelectionChange(NamedTuple):
    """What choosing by bfloat16 changes: percent of positive selections and of tokens, and the FVU's change."""

    pct_changed: float
    pct_tokens_changed: float
    fvu_change: float


def fate_counter(sae: SparseAutoencoder) -> FateCounter:
    """Return an empty counter for the SAE's features, on its device."""
    return FateCounter(sae.n_features, sae.k, sae.W_enc.device)


@torch.no_grad()
def count_fates(counter: FateCounter, sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor]) -> None:
    """Update the counter with tokens, without the decoder. Arguments as in `evaluate`."""
    for _, pre in _pre_activations(sae, centering, tokens):
        counter.update(pre)


@torch.no_grad()
def evaluate(sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor], variance: float) -> Evaluation:
    """Evaluate on chunks [tokens, d_model] of preprocessed activations, whose Σσ² over dimensions is `variance`."""
    counter = fate_counter(sae)
    active = torch.zeros_like(counter.selected)
    error = torch.zeros((), dtype=torch.float64, device=counter.selected.device)
    total = torch.zeros(sae.d_model, dtype=torch.float64, device=counter.selected.device)
    for x, pre in _pre_activations(sae, centering, tokens):
        counter.update(pre)
        z_hat, now_active = sae.reconstruct(pre)
        active += now_active
        x_hat = centering.undo(z_hat)
        error += (x - x_hat).double().square().sum()
        total += x_hat.sum(0, dtype=torch.float64)
    fvu = error.item() / (counter.n_tokens * variance)
    return Evaluation(counter, active, fvu, active.sum().item() / counter.n_tokens, total / counter.n_tokens)


def bias_against(mean: Tensor, bias: Tensor, mean_x_hat: Tensor) -> Bias:
    """Compare a bias with the mean of the tokens, both [d_model]; `mean_x_hat` is an `Evaluation`'s."""
    mean, bias = mean.double(), bias.double()
    along = mean / mean.square().sum()  # summed below, since MKL's dot product depends on where its vectors lie
    return Bias(
        distance=((bias - mean).norm() / mean.norm()).item(),
        cos=F.cosine_similarity(bias, mean, dim=0).item(),
        mean_in_bias=(bias * along).sum().item(),
        mean_in_features=((mean_x_hat - bias) * along).sum().item(),
    )


def alignment(W_enc: Tensor, mean: Tensor) -> Tensor:
    """Return each feature's cos(encoder direction, μ), [n_features]; W_enc [d_model, n_features], mean [d_model]."""
    return F.cosine_similarity(W_enc, mean.to(W_enc)[:, None], dim=0)


@torch.no_grad()
def mmcs(W_dec: Tensor, true_features: Tensor) -> float:
    """Return the mean over true features [n_true, d_model] of the largest cosine with a row of W_dec [n_features, ...].

    Mean max cosine similarity: 1 where the dictionary holds every true feature (arXiv 2605.31518).
    """
    cosines = F.normalize(true_features, dim=1) @ F.normalize(W_dec.to(true_features), dim=1).T
    return cosines.amax(1).mean().item()


@torch.no_grad()
def compare_selection(sae: TopK, tokens: Iterable[Tensor]) -> SelectionChange:
    """Compare `precision=bf16_select` with float32 on chunks [tokens, d_model] of the SAE's inputs."""
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
    """Yield tokens [tokens, d_model] with their pre-activations, few enough at a time for these to stay small."""
    for chunk in chunks:
        first = 0
        for pre in pre_activation_chunks(centering.apply(chunk) - sae.b_dec, sae.W_enc, sae.b_enc):
            yield chunk[first : first + len(pre)], pre
            first += len(pre)
