"""Evaluation of an SAE: which features are alive, dead by TopK or dead by ReLU, its FVU and L0, and their alignment."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.results.features import Fate
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.kernels import choose_topk, count, decode, largest, pre_activation_chunks
from sae_outliers.sae.screening import Selection, screened
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

    def update(self, pre: Tensor, highest: Tensor | None = None) -> Selection:
        """Take in pre-activations [tokens, n_features], and their largest by feature [n_features] if it is known.

        Return what was selected on them.
        """
        selection = Selection(*largest(pre, self.k), pre.amax(0) if highest is None else highest)
        self.add(selection)
        return selection

    def add(self, selection: Selection) -> None:
        """Take in tokens whose selection is known."""
        values, indices, highest = selection
        self.n_tokens += len(values)
        self.highest = torch.maximum(self.highest, highest)
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


class EvaluationCounter:
    """Takes in what an `Evaluation` is made of, chunk by chunk.

    Attributes:
        fates: counted from the same tokens.
        centering: from the tokens to what the SAE is given, and back.
    """

    def __init__(self, sae: SparseAutoencoder, centering: Affine, fates: FateCounter | None = None) -> None:
        self.sae, self.centering = sae, centering
        self.fates = fate_counter(sae) if fates is None else fates
        self._active = torch.zeros_like(self.fates.selected)
        self._error = torch.zeros((), dtype=torch.float64, device=self._active.device)
        self._total = torch.zeros(sae.d_model, dtype=torch.float64, device=self._active.device)

    def update(self, x: Tensor, pre: Tensor, highest: Tensor | None = None) -> None:
        """Take in tokens [tokens, d_model] with their pre-activations, as `FateCounter.update` does."""
        selection = self.fates.update(pre, highest)
        if selects_largest(self.sae):  # not to rank twice
            self._reconstructed(x, *self.sae.reconstruct_from(selection.values, selection.indices))
        else:
            self._reconstructed(x, *self.sae.reconstruct(pre))

    def add(self, x: Tensor, selection: Selection) -> None:
        """Take in tokens [tokens, d_model] of which only the selection is known, of an SAE that `selects_largest`."""
        assert selects_largest(self.sae)
        self.fates.add(selection)
        self._reconstructed(x, *self.sae.reconstruct_from(selection.values, selection.indices))

    def _reconstructed(self, x: Tensor, z_hat: Tensor, active: Tensor) -> None:
        x_hat = self.centering.undo(z_hat)
        self._active += active
        self._error += (x - x_hat).double().square().sum()
        self._total += x_hat.sum(0, dtype=torch.float64)

    def result(self, variance: float) -> Evaluation:
        """Return the evaluation on the tokens taken in, whose Σσ² over dimensions is `variance`."""
        n = self.fates.n_tokens
        fvu = self._error.item() / (n * variance)
        return Evaluation(self.fates, self._active, fvu, self._active.sum().item() / n, self._total / n)


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
    for _, pre in pre_activations_of(sae, centering, tokens):
        counter.update(pre)


@torch.no_grad()
def evaluate(sae: SparseAutoencoder, centering: Affine, tokens: Iterable[Tensor], variance: float) -> Evaluation:
    """Evaluate on chunks [tokens, d_model] of preprocessed activations, whose Σσ² over dimensions is `variance`."""
    counter = EvaluationCounter(sae, centering)
    for x, pre in pre_activations_of(sae, centering, tokens):
        counter.update(x, pre)
    return counter.result(variance)


@torch.no_grad()
def evaluate_by_screening(sae: TopK, centering: Affine, tokens: Iterable[Tensor], variance: float) -> Evaluation:
    """Evaluate as `evaluate` does an SAE that `selects_largest`; of `fates.highest` only the signs are exact.

    It takes less time where `screening.pays`.
    """
    counter = EvaluationCounter(sae, centering)
    for chunk in tokens:
        first = 0
        for selection in screened(centering.apply(chunk) - sae.b_dec, sae.W_enc, sae.b_enc, sae.k):
            counter.add(chunk[first : first + len(selection.values)], selection)
            first += len(selection.values)
    return counter.result(variance)


def selects_largest(sae: SparseAutoencoder) -> TypeGuard[TopK]:
    """Return whether the SAE's own features are those that fates count: positive, and of the token's k largest."""
    return isinstance(sae, TopK) and type(sae).reconstruct is TopK.reconstruct


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


def pre_activations_of(
    sae: SparseAutoencoder, centering: Affine, chunks: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens [tokens, d_model] with their pre-activations, few enough at a time for these to stay small."""
    for chunk in chunks:
        first = 0
        for pre in pre_activation_chunks(centering.apply(chunk) - sae.b_dec, sae.W_enc, sae.b_enc):
            yield chunk[first : first + len(pre)], pre
            first += len(pre)
