"""The verdict on a layer: fine, centre or whiten, from the fates that were measured at initialisation.

docs/diagnose.md says on which data the thresholds were chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sae_outliers.diagnosis.condition import Condition

# Of SAEs that began with less than this dead by TopK, none of those trained here or published ended with more than
# 0.5 % dead; of those that began with 17 % and more, many did
FINE_TOPK_PCT = 15.0
# Features that are dead by ReLU get no gradient at all, and wait until b_dec has learned the mean
FINE_RELU_PCT = 0.5
# What centering leaves dead by TopK revives in training from 30 % (ViT-S/14, layer 12: 0.5 % at the end) and from 61 %
# (DINOv3-1B: 0.0 %), and does not from 71 % (Evo 1: 58 %). Whitening, which leaves none, costs reconstruction
WHITEN_TOPK_PCT = 40.0
# percentage points by which another shift than the mean has to be better, before it is recommended
BETTER_PCT = 1.0

FINE, CENTRE, WHITEN = "fine", "centre", "whiten"


@dataclass(frozen=True)
class Verdict:
    """What to do about a layer before training, and the figures that decided.

    Attributes:
        kind: `fine`, `centre` or `whiten`.
        centering: the condition that is recommended: off, mean, geometric_median or whiten.
        reason: one sentence.
    """

    kind: str
    centering: str
    reason: str


def verdict(conditions: Mapping[str, Condition]) -> Verdict:
    """Decide from the conditions off, mean, geometric_median and whiten."""
    off = conditions["off"]
    if off.dead_pct_topk <= FINE_TOPK_PCT and off.dead_pct_relu <= FINE_RELU_PCT:
        return Verdict(FINE, "off", f"{_dead(off)} at initialisation, which training revives")
    best = _best_shift(conditions)
    shifted, whitened = conditions[best], conditions["whiten"]
    if shifted.dead_pct_topk > WHITEN_TOPK_PCT and whitened.dead_pct_topk < shifted.dead_pct_topk / 2:
        return Verdict(
            WHITEN,
            "whiten",
            f"{_dead(off)} as it is and {shifted.dead_pct_topk:.1f} % once the {_name(best)} is subtracted: the tokens "
            f"vary in too few directions. Whitening leaves {whitened.dead_pct_topk:.1f} %",
        )
    left = f"{_dead(off)} as it is; subtracting the {_name(best)} leaves {shifted.dead_pct_topk:.1f} %"
    return Verdict(CENTRE, best, left + _about_the_rest(shifted, whitened))


def _about_the_rest(shifted: Condition, whitened: Condition) -> str:
    if shifted.dead_pct_topk <= FINE_TOPK_PCT:
        return ""
    would = f"whitening would leave {whitened.dead_pct_topk:.1f} %"
    return f", which training revives ({would})" if shifted.dead_pct_topk <= WHITEN_TOPK_PCT else f", and {would}"


def _best_shift(conditions: Mapping[str, Condition]) -> str:
    """Return the mean, unless the geometric median leaves clearly fewer features dead."""
    mean, median = conditions["mean"], conditions["geometric_median"]
    return "geometric_median" if median.dead_pct_topk < mean.dead_pct_topk - BETTER_PCT else "mean"


def _dead(condition: Condition) -> str:
    by_relu = f", {condition.dead_pct_relu:.1f} % by ReLU," if condition.dead_pct_relu >= 0.05 else ""
    return f"{condition.dead_pct_topk:.1f} % of the features are dead by TopK{by_relu}"


def _name(centering: str) -> str:
    return centering.replace("_", " ")
