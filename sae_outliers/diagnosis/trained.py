"""A trained SAE on the tokens that it was made for: the fate of each feature, who holds the mean, and what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.verdict import FINE, WHITEN, Verdict
from sae_outliers.results.features import Fate
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.evaluation import Bias, Evaluation, alignment, bias_against, evaluate
from sae_outliers.sae.io import folded_decoder, folded_encoder
from sae_outliers.stats.moments import Moments
from sae_outliers.stats.transforms import Affine

# of the features, in percent: fewer dead ones than this are usual in a finished SAE
DEAD_PCT = 5.0
# Below this share of the mean in the bias, or above this γ of what the bias leaves, features have to carry the mean,
# and those that point away from it stay dead. In the runs of docs/recovery.md half of those that had died were back
# when between 0.5 and 2.6 was left, at γ = 2 as at 40
HELD_BY_BIAS, GAMMA_LEFT = 0.5, 1.0
# a share of the active features from which always-on ones are worth removing
ALWAYS_ON_L0_PCT = 10.0
# percent dead from which on there is more to train anew than to keep
MOSTLY_DEAD_PCT = 50.0


class Action(StrEnum):
    NOTHING = "nothing"
    FOLD = "fold a centering in and fine-tune"
    RETRAIN = "retrain centred"
    WHITEN = "whiten"
    ENLARGE_K = "enlarge k"


@dataclass(frozen=True)
class Advice:
    action: Action
    reason: str  # one sentence


@dataclass(frozen=True)
class TrainedSae:
    """A trained SAE, measured on the tokens of the diagnosis.

    Attributes:
        source: where it is from, in words.
        features: a row per feature: fate (a `Fate`, of the SAE's own selection), always_on, active (share of the
            tokens), mean_activation, alignment (cos of its encoder direction with μ).
        dead_pct: percent of the features that are active on no token; of these, never positive and never selected.
        always_on: features that are active on more than 90 % of the tokens, and their percent of all active ones.
        bias: how far b_dec is on its way to the mean.
        mean_in_always_on: share of ‖μ‖ along μ that always-on features reconstruct, 1 for all of it.
        gamma: γ of what the encoder multiplies, after b_dec.
        fvu, l0: Σ‖x - x̂‖² / Σ‖x - μ‖², and active features per token.
        advice: what to do.
        sae, input_map: the SAE in our terms, and the map from preprocessed tokens to what it is given.
    """

    source: str
    features: pd.DataFrame
    dead_pct: float
    never_selected_pct: float
    never_positive_pct: float
    always_on: int
    always_on_l0_pct: float
    bias: Bias
    mean_in_always_on: float
    gamma: float
    fvu: float
    l0: float
    advice: Advice
    sae: SparseAutoencoder = field(repr=False)
    input_map: Affine = field(repr=False)

    def row(self) -> dict[str, object]:
        """Return its columns in a model's table."""
        return {"SAE dead": self.dead_pct, "SAE always on": self.always_on, "FVU": self.fvu, "L0": self.l0}

    def lines(self) -> list[str]:
        """Return it in words."""
        return [
            f"{self.source}: {self.advice.action.upper()}. {self.advice.reason}.",
            f"{100 - self.dead_pct:.1f} % of the features alive, {self.never_selected_pct:.1f} % positive but never "
            f"selected, {self.never_positive_pct:.1f} % never positive; FVU {self.fvu:.3f}, L0 {self.l0:.1f}",
            f"of the mean, b_dec holds {100 * self.bias.mean_in_bias:.0f} % and {self.always_on} always-on feature(s), "
            f"{self.always_on_l0_pct:.0f} % of the active ones, {100 * self.mean_in_always_on:.0f} %; γ after b_dec is "
            f"{self.gamma:.2f}",
        ]


def diagnose_trained(
    loaded: LoadedSae, read: Callable[[], Iterator[Tensor]], m: Moments, verdict: Verdict
) -> TrainedSae:
    """Measure an SAE on tokens that `read` yields in chunks [tokens, d_model], preprocessed as it wants them.

    `m` are their moments, and `verdict` that of their layer.
    """
    sae, scale = loaded.sae, loaded.input_map(read())
    now = evaluate(sae, scale, read(), m.variance.sum().item())
    bias_vector = scale.undo(sae.b_dec.detach())
    bias = bias_against(m.mean, bias_vector, now.mean_x_hat)
    fates = _fates(now)
    means = mean_features(sae, scale, read())
    gamma = ((m.mean - bias_vector.double()).norm() / m.variance.sum().sqrt()).item()
    share = {fate: 100 * float((fates == fate).mean()) for fate in Fate}
    dead = share[Fate.NEVER_SELECTED] + share[Fate.NEVER_POSITIVE]
    features = pd.DataFrame(
        {
            "fate": fates,
            "always_on": now.always_on.cpu().numpy(),
            "active": (now.active.double() / now.fates.n_tokens).cpu().numpy(),
            "mean_activation": means.cpu().numpy(),
            "alignment": alignment(folded_encoder(sae, scale), m.mean).cpu().numpy(),
        }
    )
    return TrainedSae(
        source=loaded.source,
        features=features.rename_axis("feature").reset_index(),
        dead_pct=dead,
        never_selected_pct=share[Fate.NEVER_SELECTED],
        never_positive_pct=share[Fate.NEVER_POSITIVE],
        always_on=int(now.always_on.sum()),
        always_on_l0_pct=now.always_on_l0_pct,
        bias=bias,
        mean_in_always_on=_along_mean(means * now.always_on, sae, scale, m),
        gamma=gamma,
        fvu=now.fvu,
        l0=now.l0,
        advice=advise(verdict, dead, share[Fate.NEVER_POSITIVE], bias.mean_in_bias, now.always_on_l0_pct, gamma),
        sae=sae,
        input_map=scale,
    )


def _fates(now: Evaluation) -> NDArray[np.int8]:
    """Return a `Fate` for each feature by the SAE's own selection, int8 [n_features]."""
    fates = torch.full_like(now.active, Fate.ALIVE, dtype=torch.int8)
    fates[now.active == 0] = Fate.NEVER_SELECTED
    fates[(now.active == 0) & (now.fates.highest <= 0)] = Fate.NEVER_POSITIVE
    result: NDArray[np.int8] = fates.cpu().numpy()
    return result


@torch.no_grad()
def mean_features(sae: SparseAutoencoder, scale: Affine, tokens: Iterable[Tensor]) -> Tensor:
    """Return the mean activation of each feature, float64 [n_features]; tokens come in chunks [tokens, d_model]."""
    total, count = torch.zeros(sae.n_features, dtype=torch.float64, device=sae.W_enc.device), 0
    for chunk in tokens:
        for x in scale.apply(chunk).split(256):
            total += sae.features(sae.pre_activations(x)).sum(0)
            count += len(x)
    return total / count


def _along_mean(means: Tensor, sae: SparseAutoencoder, scale: Affine, m: Moments) -> float:
    """Return the share of μ, along μ, that features of these mean activations [n_features] reconstruct."""
    carried = means @ folded_decoder(sae, scale).double()
    return (carried @ m.mean / m.mean.square().sum()).item()


def advise(
    layer: Verdict,
    dead_pct: float,
    never_positive_pct: float,
    mean_in_bias: float,
    always_on_l0_pct: float,
    gamma: float,
) -> Advice:
    """Decide what to do with an SAE, from its dead features and from who holds the mean.

    `gamma` is that of what its encoder multiplies, after b_dec.
    """
    off_center = layer.kind != FINE and (mean_in_bias < HELD_BY_BIAS or gamma > GAMMA_LEFT)
    if dead_pct <= DEAD_PCT and not (off_center and always_on_l0_pct > ALWAYS_ON_L0_PCT):
        return Advice(Action.NOTHING, f"{dead_pct:.1f} % of its features are dead, which is usual")
    dead = f"{dead_pct:.1f} % of its features are dead"
    if layer.kind == WHITEN:
        return Advice(Action.WHITEN, f"{dead}, and on this layer subtracting the mean would leave many so")
    if off_center and dead_pct > MOSTLY_DEAD_PCT:
        return Advice(
            Action.RETRAIN,
            f"{dead} while b_dec holds {100 * mean_in_bias:.0f} % of the mean (γ {gamma:.2f} is left): there is little "
            "to keep",
        )
    if off_center:
        return Advice(
            Action.FOLD,
            f"{dead} and always-on features take {always_on_l0_pct:.0f} % of L0, while b_dec holds "
            f"{100 * mean_in_bias:.0f} % of the mean (γ {gamma:.2f} is left)",
        )
    if never_positive_pct > dead_pct / 2:
        return Advice(
            Action.RETRAIN,
            f"{dead}, most of them never positive, though the mean is not in the way now (γ {gamma:.2f} after b_dec): "
            "no gradient reaches them, so start them anew on centred tokens, or train with AuxK; if it was, they "
            "may be more features than the tokens need",
        )
    return Advice(
        Action.ENLARGE_K,
        f"{dead}, most of them positive on some tokens but never among the largest, though the mean is not in the way "
        f"(γ {gamma:.2f} after b_dec): take a larger k, or fewer features",
    )
