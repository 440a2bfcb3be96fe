"""Giving the dead features of a trained SAE centred tokens, without changing what the living ones compute."""

import copy

import torch
from torch import Tensor

from sae_outliers.sae.base import SparseAutoencoder


@torch.no_grad()
def recentred(sae: SparseAutoencoder, dead: Tensor, center: Tensor) -> SparseAutoencoder:
    """Return a copy in which the features that are `dead`, bool [n_features], read (z - c) @ W_enc.

    z is what the SAE is given, and c the `center` [d_model] of it. Only the encoder biases of dead features change, so
    the pre-activations of the others stay as they are, digit for digit.
    """
    result = copy.deepcopy(sae)
    # (z - b_dec) W + b = (z - c) W  for  b = (b_dec - c) W
    towards = ((sae.b_dec.double() - center.double()) @ sae.W_enc.double()).float()
    result.shift_pre_activations(torch.where(dead, towards - sae.b_enc, 0.0))
    return result
