"""A trained SAE as a file of whatever library gives it: in our terms, with what its config does to tokens before."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.transforms import PREPROCESSINGS, Affine, Preprocessing

EPS = 1e-5  # SAELens's, in its layer_norm


def layer_norm(x: Tensor) -> Tensor:
    """SAELens's `layer_norm`: each token minus its mean, by its sample standard deviation. x is [..., d_model]."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.std(-1, keepdim=True) + EPS)


def norm_sqrt_d(x: Tensor) -> Tensor:
    """SAELens's `constant_norm_rescale`: each token at norm √d_model. x is [..., d_model]."""
    return x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))


def unit_norm(x: Tensor) -> Tensor:
    """Each token at norm 1. x is [..., d_model]."""
    return x / x.norm(dim=-1, keepdim=True)


NORMALISATIONS: dict[str, Preprocessing] = {
    **dict(PREPROCESSINGS.items()),
    "layer_norm": layer_norm,
    "constant_norm_rescale": norm_sqrt_d,
    "unit_norm": unit_norm,
}


@dataclass(frozen=True)
class LoadedSae:
    """An SAE with the normalisation that its config declares.

    Attributes:
        sae: with weights as in its file, its own scaling aside.
        source: format and place, in words.
        preprocessing: what its config does to each token, one of NORMALISATIONS; None where the files do not say.
        centering: from these tokens to what the SAE is given; None: the identity.
        by_expected_norm: it is to be scaled so that tokens have the norm √d_model on average, and its files do not
            hold the factor (SAELens's `expected_average_only_in`, before training ends).
    """

    sae: SparseAutoencoder
    source: str
    preprocessing: str | None = "raw"
    centering: Affine | None = None
    by_expected_norm: bool = False
    notes: tuple[str, ...] = field(default=())

    def input_map(self, tokens: Iterable[Tensor]) -> Affine:
        """Return the map from preprocessed tokens, here in chunks [tokens, d_model], to what the SAE is given."""
        if self.centering is not None:
            return self.centering
        zero = torch.zeros_like(self.sae.b_dec.detach())
        if not self.by_expected_norm:
            return Affine(zero)
        norms = torch.cat([x.norm(dim=1) for x in tokens])
        return Affine(zero, scale=len(zero) ** 0.5 / norms.mean())

    def to(self, device: torch.device) -> "LoadedSae":
        centering = None if self.centering is None else self.centering.to(device)
        return LoadedSae(
            self.sae.to(device), self.source, self.preprocessing, centering, self.by_expected_norm, self.notes
        )
