"""Revivals: ways to bring dead features back in training. Dead: not fired in the last `dead_window` training tokens.

A revival adds to the loss of a step, or changes weights after it. The formulas are those of the original papers;
docstrings note where libraries deviate. A revival is a class registered here with a yaml in conf/revival/; one of your
own may lie anywhere, and its yaml names it by `_target_`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.base import SparseAutoencoder, StepOutput
from sae_outliers.sae.kernels import SAMPLE, ByFeature, choose_positive, decode, largest, with_gradient
from sae_outliers.utils.options import Choice, check_number, chosen_type
from sae_outliers.utils.registry import Registry

ALIGNED = 16  # features: with another number, two of the products of AuxK take 1.5 times as long


class Revival:
    """The base class, and `revival=none`: dead features are left to themselves.

    Attributes:
        step_tensors: float32 tensors of [tokens, dead features] that the loss adds to a step's memory at its peak.
    """

    step_tensors = 0.0

    def check(self, sae: SparseAutoencoder) -> None:
        """Raises ValueError where the revival is not defined for this SAE."""

    def check_length(self, steps: int, tokens: int, dead_window: int) -> None:
        """Raises ValueError where a training of so many steps and tokens ends before the revival can act.

        The base class's rule: no feature counts as dead before `dead_window` tokens have been seen.
        """
        if type(self) is not Revival and tokens <= dead_window:
            raise ValueError(
                f"train.dead_window={dead_window} is not reached in {tokens} training tokens, so the revival would "
                "never act: lower it, train longer, or use revival=none"
            )

    def loss(self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, dead: Tensor) -> Tensor | float:
        """Return the auxiliary loss. `dead` are the indices of the dead features, int64; x is [tokens, d_model]."""
        return 0.0

    def after_step(
        self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, step: int, dead: Callable[[], Tensor]
    ) -> Tensor | None:
        """Change weights once the optimiser has taken step `step`, counted from 1.

        `dead` finds the indices of the features that are dead now, which synchronises with the GPU: call it only when
        they are needed. Return the indices of re-initialised features, for the trainer to reset their moments.
        """
        return None


REVIVALS: Registry[type[Revival]] = Registry("revival")
REVIVALS.register("none")(Revival)


@REVIVALS.register("auxk")
class AuxK(Revival):
    """Gao et al. (2024): the k_aux largest positive pre-activations among dead features reconstruct the residual.

    The loss is alpha * Σ||e - ê||² / Σ||e - ē||² over the batch, with e = x - x̂ without gradient, ē its mean, and
    ê = code @ W_dec without b_dec: with it, the error grows as γ² (so in sparsify, and in SAELens up to 6.18). The
    gradient reaches decoder, encoder (in sparsify it does not) and biases. A feature that is dead by ReLU has no
    positive pre-activation and gets none.

    `k_aux` defaults to the power of two nearest to d_model / 2, as in the paper.
    """

    def __init__(self, alpha: float = 1 / 32, k_aux: int | None = None) -> None:
        check_number("revival.alpha", alpha, at_least=0)
        check_number("revival.k_aux", k_aux, at_least=1)
        self.alpha, self.k_aux = alpha, k_aux

    def k_of(self, d_model: int) -> int:
        return self.k_aux or 2 ** round(math.log2(d_model / 2))

    def loss(self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, dead: Tensor) -> Tensor | float:
        if len(dead) == 0:
            return 0.0
        k = min(self.k_of(sae.d_model), len(dead))
        weights = feature_weights(sae, dead)
        # measured: products with a code that is not sparse take longer than dense ones
        many = 8 * k > len(dead) and 8 * mean_positive(x[:SAMPLE] - sae.b_dec, *weights[:2]) > len(dead)
        reconstruct = reconstruct_densely if many else reconstruct_sparsely
        e = output.residual
        error = (e - reconstruct(x, sae.b_dec, *weights, k)).square().sum()
        spread = (e - e.mean(0)).square().sum()
        return self.alpha * error / spread.clamp(min=torch.finfo(e.dtype).tiny)


@REVIVALS.register("ghost_grads")
class GhostGrads(Revival):
    """Anthropic (January 2024): dead features, through exp instead of ReLU, reconstruct the residual.

    The ghost reconstruction is scaled, without gradient, to half the residual's norm on each token, and its loss to
    the reconstruction loss. exp takes pre-activations in units of scale / √d_model: at the paper's scale (tokens of
    norm d_model) their own units overflow.
    """

    step_tensors = 3.2

    def loss(self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, dead: Tensor) -> Tensor | float:
        if len(dead) == 0:
            return 0.0
        W_enc, b_enc, W_dec = feature_weights(sae, dead)
        pre = pre_activations(x, sae.b_dec, W_enc, b_enc) * (sae.d_model**0.5 / sae.scale)
        # a factor common to a token's features is lost in the scaling below
        ghost = (pre - pre.detach().amax(1, keepdim=True)).exp() @ W_dec
        e = output.residual
        half = (e.norm(dim=1, keepdim=True) / (2 * ghost.norm(dim=1, keepdim=True)).clamp(min=1e-12)).detach()
        error = sae.squared_error(e - ghost * half)
        return error * (sae.squared_error(e) / error.clamp(min=1e-12)).detach()


@REVIVALS.register("preact_loss")
class PreactLoss(Revival):
    """Anthropic (January 2025) for JumpReLU: coefficient * Σ relu(θ_i - pre_i) ||W_dec_i|| / scale, mean over tokens.

    The sum goes over dead features only, as in SAELens; in the original over all of them.
    """

    step_tensors = 1.0

    def __init__(self, coefficient: float = 3e-6) -> None:
        check_number("revival.coefficient", coefficient, at_least=0)
        self.coefficient = coefficient

    def check(self, sae: SparseAutoencoder) -> None:
        if not isinstance(sae, JumpReLU):
            raise ValueError("revival=preact_loss needs the thresholds of sae=jumprelu: choose another revival or SAE")

    def loss(self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, dead: Tensor) -> Tensor | float:
        if len(dead) == 0:
            return 0.0
        assert isinstance(sae, JumpReLU)
        W_enc, b_enc, W_dec = feature_weights(sae, dead)
        pre = pre_activations(x, sae.b_dec, W_enc, b_enc)
        short = (sae.threshold[dead] * sae.unit - pre).relu()
        return self.coefficient * (short @ W_dec.norm(dim=1)).mean() / sae.scale


@REVIVALS.register("resample")
class Resample(Revival):
    """Anthropic (2023): every `every` steps, up to step `until`, dead features start anew at badly explained tokens.

    Tokens of the batch are drawn with a probability proportional to the square of their loss. Such a token's
    x - b_dec gives the direction: the decoder row at unit norm, the encoder column at 0.2 times the mean norm of the
    others'. b_enc and the optimiser's moments of these features become 0.
    """

    def __init__(self, every: int = 2500, until: int = 10_000, encoder_norm: float = 0.2) -> None:
        check_number("revival.every", every, at_least=1)
        check_number("revival.until", until, at_least=0)
        check_number("revival.encoder_norm", encoder_norm, above=0)
        self.every, self.until, self.encoder_norm = every, until, encoder_norm

    def check_length(self, steps: int, tokens: int, dead_window: int) -> None:
        super().check_length(steps, tokens, dead_window)
        if min(steps, self.until) < self.every:
            raise ValueError(
                f"revival.every={self.every} is not reached in train.steps={steps} up to revival.until={self.until}, "
                "so nothing would be resampled: lower revival.every, or train longer"
            )

    @torch.no_grad()
    def after_step(
        self, sae: SparseAutoencoder, x: Tensor, output: StepOutput, step: int, dead: Callable[[], Tensor]
    ) -> Tensor | None:
        if step % self.every or step > self.until:
            return None
        indices = dead()
        if len(indices) == 0:
            return None
        weights = output.residual.double().square().sum(1).square()
        rng = torch.Generator(x.device).manual_seed(step)  # by the step, so that a resumed run draws alike
        tokens = torch.multinomial(weights, len(indices), replacement=True, generator=rng)
        directions = F.normalize(x[tokens] - sae.b_dec, dim=1)
        alive = torch.ones(sae.n_features, dtype=torch.bool, device=x.device).index_fill_(0, indices, False)
        norms = sae.W_enc.norm(dim=0)
        norm = norms[alive].mean() if alive.any() else norms.mean()
        sae.W_dec[indices] = directions
        sae.W_enc.T[indices] = self.encoder_norm * norm * directions
        sae.b_enc[indices] = 0
        return indices


# class paths that configs of earlier versions hold -> the revivals' names
FORMER_PATHS = {
    "sae_outliers.revival.Revival": "none",
    "sae_outliers.revival.AuxK": "auxk",
    "sae_outliers.revival.GhostGrads": "ghost_grads",
    "sae_outliers.revival.PreactLoss": "preact_loss",
    "sae_outliers.revival.Resample": "resample",
}


def revival_type(cfg: Choice) -> type[Revival]:
    """Return the class that the config group `revival` names. Raises ValueError where there is none."""
    return chosen_type(REVIVALS, Revival, cfg, FORMER_PATHS)


@torch.no_grad()
def mean_positive(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> float:
    """Return how many pre-activations of a token are positive, in the mean over x [tokens, d_model] less b_dec."""
    return (torch.addmm(b_enc, x, W_enc) > 0).sum().item() / len(x)


def reconstruct_sparsely(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, k: int) -> Tensor:
    """Return the k largest positive pre-activations of each token times their decoder rows, [tokens, d_model]."""
    chosen = choose_positive(x - b_dec, W_enc, b_enc, k)
    by_feature = ByFeature(chosen, len(W_dec))
    return decode(with_gradient(chosen, x, W_enc, b_enc, b_dec, by_feature), W_dec, by_feature)


def reconstruct_densely(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, k: int) -> Tensor:
    """Return what `reconstruct_sparsely` does, by way of all pre-activations."""
    more = -len(b_enc) % ALIGNED  # features of zeros, which are chosen before negative ones and add nothing
    W_enc, b_enc, W_dec = F.pad(W_enc.T, (0, 0, 0, more)).T, F.pad(b_enc, (0, more)), F.pad(W_dec, (0, 0, 0, more))
    pre = pre_activations(x, b_dec, W_enc, b_enc)
    _, indices = largest(pre.detach(), k)
    return torch.zeros_like(pre).scatter_(1, indices, pre.gather(1, indices).relu()) @ W_dec


def pre_activations(x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Return (x - b_dec) @ W_enc + b_enc, differentiable in the weights."""
    # b_dec shifts every token alike: its gradient needs those of the pre-activations summed over the tokens, which
    # comes this way, by a shift of 0, and not a product with each of them
    shift = (b_dec - b_dec.detach()) @ W_enc.detach()
    return torch.addmm(b_enc - shift, x - b_dec.detach(), W_enc)


def feature_weights(sae: SparseAutoencoder, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_enc, b_enc and W_dec of some features, with gradient."""
    W_enc, b_enc, W_dec = (w.index_select(0, indices) for w in (sae.W_enc.T, sae.b_enc, sae.W_dec))
    return W_enc.T, b_enc, W_dec
