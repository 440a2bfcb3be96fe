"""TopK SAE (Gao et al. 2024): the k largest positive pre-activations of each token are its features."""

from typing import Any

import torch
from torch import Tensor

from sae_outliers.sae.base import SAES, SparseAutoencoder, StepOutput
from sae_outliers.sae.kernels import (
    PRECISIONS,
    ByFeature,
    Code,
    choose_topk,
    count,
    decode,
    largest,
    rows_of_k,
    with_gradient,
)

# of `sparse_step`: 1.29 measured on a CPU (results/benchmarks), more on a GPU, which gathers decoder rows from memory
SPARSE_STEP_COST = 2.0


@SAES.register("topk")
class TopK(SparseAutoencoder):
    """`precision=bf16_select` lets a product in bfloat16 name the candidates in training; see `kernels.choose_topk`.

    Raises:
        ValueError: an unknown precision.
    """

    step_cost, step_tensors = SPARSE_STEP_COST, 0

    def __init__(
        self,
        d_model: int,
        n_features: int,
        k: int,
        scale: float = 1.0,
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        super().__init__(d_model, n_features, k, scale, seed)
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision} does not exist: use one of {', '.join(PRECISIONS)}")
        self.precision = precision

    def options(self) -> dict[str, Any]:
        return super().options() | {"precision": self.precision}

    def features(self, pre: Tensor) -> Tensor:
        values, indices = largest(pre, self.k)
        return torch.zeros_like(pre).scatter_(1, indices, values.relu())

    def reconstruct(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        return self.reconstruct_from(*largest(pre, self.k))

    def reconstruct_from(self, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `reconstruct` does, from the k largest pre-activations [tokens, k] and their features."""
        code = rows_of_k(values.relu(), indices)
        return decode(code, self.W_dec) + self.b_dec, count(code.indices, code.values > 0, self.n_features)

    def choose(self, x: Tensor) -> Code:
        """Choose the k largest pre-activations of each token of x [tokens, d_model]."""
        return choose_topk(x - self.b_dec, self.W_enc, self.b_enc, self.k, self.precision)

    def training_step(self, x: Tensor) -> StepOutput:
        return sparse_step(self, x, self.choose(x))


def sparse_step(sae: SparseAutoencoder, x: Tensor, chosen: Code) -> StepOutput:
    """Take the step of every type whose features are the chosen pre-activations where they are positive."""
    by_feature = ByFeature(chosen, sae.n_features)
    code = with_gradient(chosen, x, sae.W_enc, sae.b_enc, sae.b_dec, by_feature)
    code = code._replace(values=code.values.relu())
    residual = x - sae.b_dec - decode(code, sae.W_dec, by_feature)
    return StepOutput(sae.squared_error(residual), code.fired(sae.n_features), residual.detach())
