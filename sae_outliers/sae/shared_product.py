"""The fates of features under several shifts of the same tokens, from one product with the encoder.

What an SAE is given is s (x - c), and its pre-activations are s (x - c) W - b_dec W + b_enc. A shift adds the same to
a feature on every token:

    s (x - c) W - b_dec W + b_enc  =  s (x - m) W  +  (s (m - c) - b_dec) W + b_enc

The first term is a dense product that all of them share; the second is a constant of each feature, formed in float64.
With m near the mean, no mean enters the float32 product: at γ = 50 no digit of what varies between tokens is lost.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.sae.evaluation import FateCounter
from sae_outliers.sae.kernels import pre_activation_chunks
from sae_outliers.stats.transforms import Affine


class Member(NamedTuple):
    """One of those that share: its counter, its scale s, and its constant of each feature [n_features], None for 0.

    `take` is shown tokens, their pre-activations, and the largest of these by feature.
    """

    counter: FateCounter
    take: Callable[[Tensor, Tensor, Tensor], object]
    scale: float
    constant: Tensor | None


class SharedProduct:
    """Counts the fates of SAEs with the same W_enc, whose centerings only shift and scale; see `shares`."""

    def __init__(self, W_enc: Tensor, center: Tensor, enough: int | None = None) -> None:
        """W_enc is [d_model, n_features]; `center` [d_model] is what the product subtracts from the tokens: m.

        A feature that was selected once is alive for good. Where only fates matter, a counter all of whose features
        were selected takes no more tokens once it has had `enough`.
        """
        self.W_enc, self.center, self.enough = W_enc.detach(), center.to(W_enc), enough
        self.members: list[Member] = []
        self._zeros = W_enc.new_zeros(W_enc.shape[1])

    def shares(self, sae: SparseAutoencoder, centering: Affine) -> bool:
        """Return whether the SAE's product is this one but for a shift and a scale."""
        return centering.linear is None and torch.equal(sae.W_enc, self.W_enc)

    @torch.no_grad()
    def add(
        self,
        counter: FateCounter,
        sae: SparseAutoencoder,
        centering: Affine,
        take: Callable[[Tensor, Tensor, Tensor], object] | None = None,
    ) -> None:
        """Have `update` count the fates of an SAE behind a centering, which `shares`.

        Where more than fates is counted, `take` does it, and updates the counter.
        """

        def count(x: Tensor, pre: Tensor, highest: Tensor) -> object:
            return counter.update(pre, highest)

        scale = 1.0 if centering.scale is None else centering.scale.item()
        offset = scale * (self.center.double() - centering.shift.double()) - sae.b_dec.double()
        constant = offset @ self.W_enc.double() + sae.b_enc.double()
        self.members.append(Member(counter, take or count, scale, constant.float() if constant.any() else None))

    @property
    def is_settled(self) -> bool:
        """Return whether more tokens change no fate."""
        return all(map(self._is_settled, self.members))

    def _is_settled(self, member: Member) -> bool:
        counter = member.counter
        return self.enough is not None and counter.n_tokens >= self.enough and bool((counter.selected > 0).all())

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in tokens [tokens, d_model], before any centering."""
        members = [member for member in self.members if not self._is_settled(member)]
        if not members:
            return
        first = 0
        for product in pre_activation_chunks(x - self.center, self.W_enc, self._zeros):
            part = x[first : first + len(product)]
            first += len(product)
            highest = product.amax(0)  # a scale and a constant, rounded or not, leave the largest the largest
            for _, take, scale, constant in members:
                take(part, _mapped(product, scale, constant), _mapped(highest, scale, constant))


def _mapped(product: Tensor, scale: float, constant: Tensor | None) -> Tensor:
    scaled = product if scale == 1 else product * scale
    return scaled if constant is None else scaled + constant
