"""The base class of the SAE types, their registry, and the names by which configs and files know them.

A type is a class of `architectures/` with a yaml in conf/sae/. One of your own may lie anywhere: its yaml names it by
`_target_`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sae_outliers.utils.options import Choice, chosen_type, imported_type
from sae_outliers.utils.registry import Registry

CACHED_ROWS = 512  # of the decoder and its gradient: so many stay in a CPU's cache between two operations


@dataclass(frozen=True)
class StepOutput:
    """One training batch: the loss to minimise, which features were active in it, and what was left unexplained."""

    loss: Tensor
    fired: Tensor  # bool [n_features]
    residual: Tensor  # x - x̂ [tokens, d_model], without gradient


class SparseAutoencoder(nn.Module, ABC):
    """x̂ = features @ W_dec + b_dec, with features from the pre-activations (x - b_dec) @ W_enc + b_enc.

    At initialisation the decoder directions are random with unit norm, the encoder is the decoder transposed, and
    all biases are 0 (arXiv 2605.31518). The same seed gives the same weights on every device.

    Attributes:
        W_enc: [d_model, n_features], held with a feature's weights side by side.  b_enc: [n_features].
        W_dec: [n_features, d_model].  b_dec: [d_model].
        k: features per token that a type with a fixed number of them selects; for other types only the k of the
            dead-by-TopK measurement.
        scale: root of the data's total variance. Dividing by it makes the loss 1 for an SAE that predicts the mean,
            and gives penalties and thresholds the same meaning at any scale of the activations.
        unit_norm_decoder: whether training keeps the decoder rows at unit norm.
        step_cost: operations of a training step relative to the encoder matmul, for the estimates of a sweep. That of
            a step through dense features is the default: 6.28 measured on a CPU (results/benchmarks).
        step_tensors: float32 tensors of [tokens, n_features] that a training step holds at its peak, likewise; 0 where
            it holds only chunks of pre-activations. The default is of the type that holds most.
    """

    unit_norm_decoder = True
    step_cost = 6.3
    step_tensors = 6.5

    def __init__(self, d_model: int, n_features: int, k: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.k, self.scale = k, scale
        directions = torch.randn(n_features, d_model, generator=torch.Generator().manual_seed(seed))
        self.W_enc = nn.Parameter(torch.empty(n_features, d_model).T)
        self.b_enc = nn.Parameter(torch.zeros(n_features))
        self.W_dec = nn.Parameter(torch.empty(n_features, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.set_directions(directions)

    @torch.no_grad()
    def set_directions(self, directions: Tensor) -> None:
        """Set decoder rows along `directions` [n_features, d_model], at unit norm, and the encoder to the transpose."""
        self.W_dec.copy_(F.normalize(directions, dim=1))
        self.W_enc.copy_(self.W_dec.T)

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    def options(self) -> dict[str, Any]:
        """Return the arguments, besides the sizes, that make an SAE of the same kind."""
        return {"k": self.k, "scale": self.scale}

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return [tokens, n_features] from x [tokens, d_model]; call it on chunks, never on all tokens at once."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    @abstractmethod
    def features(self, pre: Tensor) -> Tensor:
        """Return the features of each token, [tokens, n_features], from its pre-activations."""

    def reconstruct(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ [tokens, d_model], and on how many tokens each feature is active, [n_features]."""
        features = self.features(pre)
        return features @ self.W_dec + self.b_dec, (features > 0).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction x̂, [tokens, d_model]."""
        return self.reconstruct(self.pre_activations(x))[0]

    @abstractmethod
    def training_step(self, x: Tensor) -> StepOutput:
        """Return the loss on a batch [tokens, d_model], with what the batch left behind."""

    def squared_error(self, residual: Tensor) -> Tensor:
        """Return the mean over tokens of ||x - x̂||² / scale², from the residuals [tokens, d_model]."""
        return residual.square().sum(1).mean() / self.scale**2

    @torch.no_grad()
    def shift_pre_activations(self, shift: Tensor) -> None:
        """Add `shift` [n_features] to (x - b_dec) @ W_enc through the biases."""
        self.b_enc.add_(shift)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Remove from each decoder row's gradient the part along the row: it would only change the row's norm."""
        if self.W_dec.grad is None:
            return
        at_once = CACHED_ROWS if self.W_dec.device.type == "cpu" else self.n_features
        for grad, rows in zip(self.W_dec.grad.split(at_once), self.W_dec.split(at_once), strict=True):
            along = (grad * rows).sum(1, keepdim=True)  # in half the time of einsum's row by row
            grad.addcmul_(along, rows, value=-1)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Rescale every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))


SAES: Registry[type[SparseAutoencoder]] = Registry("sae", "sae_outliers.sae.architectures")

# class paths that configs and SAE files of earlier versions hold -> the types' names
FORMER_PATHS = {
    "sae_outliers.sae.topk.TopK": "topk",
    "sae_outliers.sae.batchtopk.BatchTopK": "batchtopk",
    "sae_outliers.sae.matryoshka.Matryoshka": "matryoshka",
    "sae_outliers.sae.groupmax.GroupMax": "groupmax",
    "sae_outliers.sae.relu.ReLU": "relu",
    "sae_outliers.sae.jumprelu.JumpReLU": "jumprelu",
    "sae_outliers.sae.gated.Gated": "gated",
}


def sae_type(cfg: Choice) -> type[SparseAutoencoder]:
    """Return the class that the config group `sae` names. Raises ValueError where there is none."""
    return chosen_type(SAES, SparseAutoencoder, cfg, FORMER_PATHS)  # type: ignore[type-abstract]


def type_name(kind: type[SparseAutoencoder]) -> str:
    """Return the name by which files know an SAE type: the first that it is registered by, else its class path.

    A subclass of a registered type is not that type: its features may be others.
    """
    return next((name for name, known in SAES.items() if known is kind), f"{kind.__module__}.{kind.__qualname__}")


def type_named(name: str) -> type[SparseAutoencoder]:
    """Return the SAE type that has this `type_name`, or had it once. Raises ValueError where there is none."""
    if name in SAES:
        return SAES[name]
    return imported_type(SAES, SparseAutoencoder, name, FORMER_PATHS)  # type: ignore[type-abstract]
