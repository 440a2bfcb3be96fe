"""A run before its first step: what its SAE is given, the SAE, and the fates of its features at initialisation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sae_outliers.config import RunConfig, sae_options, sae_seed_of
from sae_outliers.runs.layer_data import Severity
from sae_outliers.sae.base import SparseAutoencoder, sae_type
from sae_outliers.sae.evaluation import (
    Evaluation,
    EvaluationCounter,
    FateCounter,
    alignment,
    count_fates,
    fate_counter,
    pre_activations_of,
)
from sae_outliers.sae.initialization import initialise
from sae_outliers.sae.io import folded_encoder
from sae_outliers.sae.shared_product import SharedProduct
from sae_outliers.stats.moments import Moments
from sae_outliers.stats.transforms import CENTERINGS, INPUT_SCALES, Affine
from sae_outliers.utils.instantiate import instantiate

Tokens = Callable[[], Iterator[Tensor]]  # a fresh pass over the preprocessed evaluation tokens, [tokens, d_model]


@dataclass(frozen=True)
class RunSetup:
    """One layer of a model under one condition.

    Attributes:
        true_features: directions of which activations are known to be made, [n_true, d_model]; None for a network's.
        shift: what planting a γ adds to every preprocessed token, [d_model]; None where none is planted.
        tokens: moments of the preprocessed tokens, planted where the config asks for it.
        centering: the map from these to what the SAE is given, its scale included.
        sae_input: moments of what the SAE is given.
        fates: of the SAE's features at initialisation, on the evaluation tokens that `Fates` has been shown.
        alignment: cos(encoder direction, μ) of each feature at initialisation, [n_features].
        gamma_sae_input: γ of what the encoder multiplies at initialisation, after centering and b_dec.
        offset_max: the largest |μ_i - b_dec_i| of what the SAE is given, at initialisation: how far b_dec has to go.
    """

    cfg: RunConfig
    layer: int
    directory: Path
    severity: Severity
    device: torch.device
    true_features: Tensor | None
    shift: Tensor | None
    tokens: Moments
    centering: Affine
    sae_input: Moments
    sae: SparseAutoencoder
    fates: FateCounter
    alignment: Tensor
    gamma_sae_input: float
    offset_max: float

    @property
    def condition(self) -> str:
        cfg = self.cfg
        return f"{cfg.sae.name} {cfg.centering.name}" + ("" if cfg.revival.name == "none" else f" {cfg.revival.name}")

    @property
    def sae_seed(self) -> int:
        return sae_seed_of(self.cfg.seed, self.cfg.sae_seed)

    @property
    def d_model(self) -> int:
        return len(self.tokens.mean)

    def rescale_mean(self, x: Tensor) -> Tensor:
        """Return preprocessed tokens with the mean that is planted."""
        return x if self.shift is None else x + self.shift

    def to_sae_input(self, x: Tensor) -> Tensor:
        """Return what the SAE is given of preprocessed tokens [tokens, d_model]."""
        return self.centering.apply(self.rescale_mean(x))

    def from_preprocessed(self) -> Affine:
        """Return the map from preprocessed tokens to what the SAE is given, and back."""
        if self.shift is None:
            return self.centering
        return replace(self.centering, shift=self.centering.shift - self.shift)

    def align(self) -> Tensor:
        """Return cos(encoder direction, μ) of each feature as it is now, [n_features]."""
        return _alignment(self.sae, self.centering, self.tokens)


class Fates:
    """Counts fates at initialisation of several set-ups on the same tokens, in one product where they share it.

    Those that train are evaluated at once: it is the first point of their curves.
    """

    def __init__(self, setups: Sequence[RunSetup]) -> None:
        self.products: list[SharedProduct] = []
        self.alone: list[RunSetup] = []
        self.evaluations = {
            setup.directory: EvaluationCounter(setup.sae, setup.from_preprocessed(), setup.fates)
            for setup in setups
            if setup.cfg.train.steps
        }
        for setup in setups:
            self._add(setup)

    def _add(self, setup: RunSetup) -> None:
        centering = setup.from_preprocessed()
        if centering.linear is not None:
            self.alone.append(setup)
            return
        product = next((one for one in self.products if one.shares(setup.sae, centering)), None)
        if product is None:
            product = SharedProduct(setup.sae.W_enc, setup.severity.sae_tokens.mean)
            self.products.append(product)
        evaluation = self.evaluations.get(setup.directory)
        product.add(setup.fates, setup.sae, centering, evaluation.update if evaluation else None)

    def count(self, tokens: Iterable[Tensor]) -> None:
        """Take in chunks of preprocessed tokens [tokens, d_model]."""
        for chunk in tokens:
            for product in self.products:
                product.update(chunk)
            for setup in self.alone:
                self._count_alone(setup, chunk)

    @torch.no_grad()
    def _count_alone(self, setup: RunSetup, chunk: Tensor) -> None:
        evaluation = self.evaluations.get(setup.directory)
        if evaluation is None:
            count_fates(setup.fates, setup.sae, setup.centering, [setup.rescale_mean(chunk)])
            return
        for x, pre in pre_activations_of(setup.sae, setup.from_preprocessed(), [chunk]):
            evaluation.update(x, pre)

    def evaluation_of(self, setup: RunSetup) -> Evaluation:
        """Return the evaluation at initialisation, on the tokens counted, of a set-up that trains."""
        found = self.evaluations[setup.directory].result(setup.tokens.variance.sum().item())
        # they were counted before their mean was planted
        return found if setup.shift is None else replace(found, mean_x_hat=found.mean_x_hat + setup.shift)


def _alignment(sae: SparseAutoencoder, centering: Affine, tokens: Moments) -> Tensor:
    """cos(encoder direction, μ) of each feature, both in the space of the preprocessed tokens."""
    return alignment(folded_encoder(sae, centering), tokens.mean.float())


def set_up(
    cfg: RunConfig,
    layer: int,
    directory: Path,
    severity: Severity,
    device: torch.device,
    read: Tokens | None = None,
    sae: SparseAutoencoder | None = None,
) -> RunSetup:
    """Return the run ready to count fates and to train, with a new SAE or, where given, the one to share.

    `read` is needed by initialisations that look at tokens; without a store there is no reading them again.
    """
    shift, tokens = _planted(severity.sae_tokens, cfg.data.rescale_mean)
    centering = replace(CENTERINGS[cfg.centering.name](tokens), scale=INPUT_SCALES[cfg.train.input_scale](tokens))
    sae_input = tokens.mapped(centering.shift, centering.linear, centering.scale)
    if sae is None:
        sae = _initialised(cfg, sae_input, device, lambda x: centering.apply(x if shift is None else x + shift), read)
    off_center = sae_input.mean - sae.b_dec.detach()
    return RunSetup(
        cfg, layer, directory, severity, device, true_features_of(cfg), shift, tokens, centering, sae_input, sae,
        fates=fate_counter(sae),
        alignment=_alignment(sae, centering, tokens),
        gamma_sae_input=(off_center.norm() / sae_input.variance.sum().sqrt()).item(),
        offset_max=off_center.abs().max().item(),
    )  # fmt: skip


def true_features_of(cfg: RunConfig) -> Tensor | None:
    """Return the directions that the model's config names as the true ones, if it does."""
    if cfg.model.true_features is None:
        return None
    found: Tensor = instantiate(cfg.model.true_features)
    return found


def _planted(tokens: Moments, gamma: float | None) -> tuple[Tensor | None, Moments]:
    """The shift that gives the tokens this γ, and their moments after it."""
    if gamma is None:
        return None, tokens
    shift = (gamma / tokens.gamma - 1) * tokens.mean
    return shift.float(), tokens.shifted(shift)


def _initialised(
    cfg: RunConfig, sae_input: Moments, device: torch.device, see: Callable[[Tensor], Tensor], read: Tokens | None
) -> SparseAutoencoder:
    """An SAE of the config's type, initialised with the config's seed; `see` maps tokens to what it is given."""
    kind, seed = sae_type(cfg.sae), sae_seed_of(cfg.seed, cfg.sae_seed)
    scale = sae_input.variance.sum().sqrt().item()
    sae = kind(len(sae_input.mean), scale=scale, seed=seed, **sae_options(cfg, kind)).to(device)

    def tokens() -> Iterator[Tensor]:
        assert read is not None, "validation lets no initialisation that reads tokens into a run without a store"
        return map(see, read())

    initialise(sae, cfg.init, tokens, sae_input, seed)
    return sae
