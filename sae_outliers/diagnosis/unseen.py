"""Features that count as dead only because the tokens were few, and how many tokens would settle it.

A feature is seen on tokens as a species is in samples: f₁ features were selected on exactly one token, f₂ on exactly
two. Chao's estimate (1984) of those that were missed is f₁² / 2f₂, and how many more tokens find all but a few of them
follows from the same two numbers (Chao, Colwell, Lin and Gotelli 2009).
"""

from dataclasses import dataclass
from math import ceil, log

from sae_outliers.sae.evaluation import FateCounter

ACCEPTED_PCT = 0.5  # of the features: fewer missed ones than that change no verdict


@dataclass(frozen=True)
class Unseen:
    """What more tokens would change.

    Attributes:
        pct: percent of the features that count as dead by TopK and that more tokens would show alive, estimated.
        tokens_needed: about how many tokens would leave at most ACCEPTED_PCT of them; None where these tokens do.
    """

    pct: float
    tokens_needed: int | None


def unseen(counter: FateCounter) -> Unseen:
    """Estimate it from how often features were selected."""
    once, twice = (int((counter.selected == times).sum()) for times in (1, 2))
    n_features, dead = len(counter.selected), int((counter.selected == 0).sum())
    # the form without division by 0, for f₂ = 0
    missed = min(dead, once**2 / (2 * twice) if twice else once * (once - 1) / 2)
    accepted = ACCEPTED_PCT / 100 * n_features
    pct = 100 * missed / n_features
    if missed <= accepted or not once:
        return Unseen(pct, None)
    more = counter.n_tokens * once / (2 * max(twice, 1)) * log(missed / accepted)
    return Unseen(pct, counter.n_tokens + ceil(more))
