"""Feature fates under several shifts of the same tokens, from one product with the encoder.

A shift c adds the same to a feature's pre-activation on every token:  (x - c) W = (x - m) W + (m - c) W.  The first
term, formed of tokens centred at m, is one dense product for all shifts; the second is a constant per feature, formed
in float64. The mean never enters the float32 product, so at γ = 50 no digit of what varies is lost.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sae_outliers.sae.evaluation import FateCounter
from sae_outliers.sae.kernels import pre_activation_chunks

# A feature that was selected once is alive for good, so once all have been, more tokens change no fate. So many are
# taken in any case, for the share of tokens on which a feature is active.
LEAST_TOKENS = 2048


class SharedProduct:
    """Counts fates by shift, of an SAE without biases.

    Attributes:
        counters: a `FateCounter` for each shift; one whose features are all alive stops at LEAST_TOKENS or later.
    """

    def __init__(self, W_enc: Tensor, center: Tensor, shifts: Mapping[str, Tensor], k: int) -> None:
        """W_enc is [d_model, n_features]; `center` [d_model] is what the product subtracts, usually the mean."""
        self.W_enc, self.center = W_enc.detach(), center.to(W_enc)
        self._zeros = W_enc.new_zeros(W_enc.shape[1])
        self._constants = {name: self._constant(shift.to(W_enc)) for name, shift in shifts.items()}
        self.counters = {name: FateCounter(W_enc.shape[1], k, W_enc.device) for name in shifts}

    def _constant(self, shift: Tensor) -> Tensor | None:
        """Return (m - c) W of a shift, [n_features]; None where it is 0."""
        difference = self.center.double() - shift.double()
        return (difference @ self.W_enc.double()).float() if difference.any() else None

    @property
    def is_settled(self) -> bool:
        """Return whether more tokens change no fate."""
        return all(map(_is_settled, self.counters.values()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in tokens [tokens, d_model]."""
        unsettled = [name for name, counter in self.counters.items() if not _is_settled(counter)]
        if not unsettled:
            return
        for pre in pre_activation_chunks(x - self.center, self.W_enc, self._zeros):
            highest = pre.amax(0)  # adding a constant, rounded or not, leaves the largest the largest
            for name in unsettled:
                constant = self._constants[name]
                if constant is None:
                    self.counters[name].update(pre, highest)
                else:
                    self.counters[name].update(pre + constant, highest + constant)


def _is_settled(counter: FateCounter) -> bool:
    return counter.n_tokens >= LEAST_TOKENS and bool((counter.selected > 0).all())
