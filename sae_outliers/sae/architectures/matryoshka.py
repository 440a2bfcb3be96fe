"""Matryoshka SAE (Bussmann et al. 2025): a BatchTopK SAE whose first features must reconstruct on their own."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.base import SAES, StepOutput
from sae_outliers.sae.kernels import Code, decode, with_gradient


@SAES.register("matryoshka")
class Matryoshka(BatchTopK):
    """The loss is the mean over prefixes of the error that the features up to the prefix's end leave.

    `prefixes` are ascending fractions of n_features, the last one 1.

    Raises:
        ValueError: `prefixes` are not.
    """

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        scale: float = 1.0,
        seed: int = 0,
        prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        self.prefixes = [float(fraction) for fraction in prefixes]
        self.ends = [round(fraction * n_features) for fraction in self.prefixes]
        if any(a >= b for a, b in zip([0, *self.ends], self.ends, strict=False)) or self.prefixes[-1:] != [1.0]:
            raise ValueError(f"sae.prefixes={self.prefixes} must be fractions of n_features that ascend to 1")

    def options(self) -> dict[str, Any]:
        return super().options() | {"prefixes": self.prefixes}

    def training_step(self, x: Tensor) -> StepOutput:
        code = with_gradient(self.choose(x), x, self.W_enc, self.b_enc, self.b_dec)
        code = code._replace(values=code.values.relu())
        residual, losses = x - self.b_dec, []
        for part in split_by_feature(code, self.ends):
            residual = residual - decode(part, self.W_dec)
            losses.append(self.squared_error(residual))
        return StepOutput(sum(losses, x.new_zeros(())) / len(losses), code.fired(self.n_features), residual.detach())


def split_by_feature(code: Code, ends: Sequence[int]) -> list[Code]:
    """Return the entries of the features up to the first of `ends`, of those from there to the second, and so on.

    The sizes of all parts come from a GPU at once; a mask for each part would wait for it each time.
    """
    parts = torch.bucketize(code.indices, torch.tensor(ends, device=code.indices.device), right=True)
    order = parts.argsort(stable=True)  # by token within a part, as before
    tokens = torch.repeat_interleave(code.offsets.diff(), output_size=len(order))[order]
    last = torch.searchsorted(parts[order], torch.arange(len(ends), device=order.device), right=True)
    bounds = [0, *last.tolist()]
    return [_part(code, order[start:end], tokens[start:end]) for start, end in pairwise(bounds)]


def _part(code: Code, entries: Tensor, tokens: Tensor) -> Code:
    every_token = torch.arange(code.tokens + 1, device=tokens.device)
    return Code(code.values[entries], code.indices[entries], torch.searchsorted(tokens, every_token))
