"""The k largest pre-activations of each token, exact, from a product in bfloat16.

That product takes 0.43 of the time of one in float32 where a CPU has instructions for it, and less on a GPU. It names
more candidates than are wanted, whose values are then formed in float32; how far bfloat16 was off on these says how far
it may be off on the others. A token on which one of the others could still be among the k largest is ranked anew from a
product in float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sae_outliers.sae.kernels import (
    bfloat16_chunks,
    largest,
    looked_up,
    pre_activation_chunks,
    products,
    rows_of_k,
)

SPARE_CANDIDATES = 32  # beyond k: with fewer, a product in float32 for a token or two is needed in most chunks
# a pre-activation is taken to be off by at most so many times the root mean square over the token's candidates: the
# largest error on 4096 tokens was 5 to 9.5 times that, at γ from 0.5 to 50, and near the k-th largest value 5
SAFETY = 10.0
LEAST_WEIGHTS = 1 << 19  # of an encoder: with fewer, what follows the product takes longer than bfloat16 saves


class Selection(NamedTuple):
    """What is chosen on a chunk of tokens.

    Attributes:
        values, indices: of each token's k largest pre-activations, [tokens, k], in no order.
        highest: each feature's largest pre-activation, [n_features].
    """

    values: Tensor
    indices: Tensor
    highest: Tensor


def pays(W_enc: Tensor) -> bool:
    """Return whether `screened` takes less time than `selected_reference` with this encoder [d_model, n_features]."""
    if W_enc.dtype != torch.float32 or W_enc.numel() < LEAST_WEIGHTS:
        return False
    if W_enc.is_cuda:
        return torch.cuda.get_device_capability(W_enc.device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported())


@torch.no_grad()
def screened(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Iterator[Selection]:
    """Yield the selection on consecutive rows of x [tokens, d_model], from which b_dec is subtracted already.

    `highest` is exact where its sign is in question, and elsewhere to bfloat16's rounding.
    """
    first, width = 0, min(k + SPARE_CANDIDATES, W_enc.shape[1])
    for rough in bfloat16_chunks(x, W_enc, b_enc):
        part = x[first : first + len(rough)]
        first += len(rough)
        guesses, candidates = largest(rough, width)
        exact = products(part, W_enc.T, rows_of_k(guesses, candidates)) + looked_up(b_enc, candidates.flatten())
        exact = exact.view_as(guesses)
        may_be_off = SAFETY * (exact - guesses).square().mean(1).sqrt()
        values, places = largest(exact, k)
        chosen = candidates.gather(1, places)
        # of the features that are no candidates, none has a higher guess than the candidates' least
        unsure = (guesses.amin(1) + may_be_off >= values.amin(1)).nonzero()[:, 0]
        if len(unsure):
            values[unsure], chosen[unsure] = largest(torch.addmm(b_enc, part[unsure], W_enc), k)
        yield Selection(values, chosen, _highest(rough, part, W_enc, b_enc, may_be_off.amax()))


def _highest(rough: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, may_be_off: Tensor) -> Tensor:
    highest = rough.amax(0)
    close = (highest.abs() <= may_be_off).nonzero()[:, 0]
    if len(close):
        highest[close] = torch.addmm(b_enc[close], x, W_enc.T[close].T).amax(0)
    return highest


@torch.no_grad()
def selected_reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Iterator[Selection]:
    """Yield what `screened` does, by way of a product in float32."""
    for pre in pre_activation_chunks(x, W_enc, b_enc):
        yield Selection(*largest(pre, k), pre.amax(0))
