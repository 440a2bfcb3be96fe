"""What is measured of a run's SAE on the evaluation tokens: the points of its death curves, and its end."""

from dataclasses import dataclass

from torch import Tensor

from sae_outliers.results.curves import Point
from sae_outliers.runs.setup import RunSetup, Tokens
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import (
    Bias,
    Evaluation,
    FateCounter,
    SelectionChange,
    bias_against,
    compare_selection,
    evaluate,
    evaluate_by_screening,
    mmcs,
    selects_largest,
)
from sae_outliers.sae.io import folded_decoder
from sae_outliers.sae.screening import pays
from sae_outliers.training.trainer import Trainer
from sae_outliers.utils.files import atomic_write


@dataclass(frozen=True)
class Final:
    """A trained SAE on the evaluation tokens.

    Attributes:
        collateral_dead: features that were alive at initialisation and are never positive now.
        mmcs: mean max cosine similarity of the dictionary with the true features; None where they are not known.
        dead_pct_window: of features that did not fire in the last `dead_window` training tokens.
        selection: what precision=bf16_select changes; None with float32.
    """

    evaluation: Evaluation
    alignment: Tensor
    bias: Bias
    collateral_dead: int
    mmcs: float | None
    dead_pct_window: float | None
    selection: SelectionChange | None


class Measurements:
    """A run's SAE on the evaluation tokens at the points of its curves: the same weights are not evaluated twice.

    Attributes:
        latest: the evaluation of the last point; before the first one, that at initialisation.
    """

    def __init__(self, setup: RunSetup, read: Tokens, at_start: Evaluation) -> None:
        self.setup, self._read, self.latest = setup, read, at_start

    def point(self, step: int) -> Point:
        """Return the figures of the SAE as it is, after `step` steps."""
        if step:
            self.latest = self._evaluate(is_last=step == self.setup.cfg.train.steps)
        return curve_point(self.setup, self.latest)

    def _evaluate(self, is_last: bool) -> Evaluation:
        setup = self.setup
        sae, tokens, variance = setup.sae, map(setup.rescale_mean, self._read()), setup.tokens.variance.sum().item()
        # a point needs only the signs of the highest pre-activations; of the last, features.parquet has them
        if not is_last and selects_largest(sae) and pays(sae.W_enc):
            return evaluate_by_screening(sae, setup.centering, tokens, variance)
        return evaluate(sae, setup.centering, tokens, variance)


def curve_point(setup: RunSetup, now: Evaluation) -> Point:
    """Return the figures of a point of the death curves."""
    bias = bias_of(setup, now)
    return {
        "dead_pct": now.dead_pct,
        "dead_pct_topk": now.fates.dead_pct_topk,
        "dead_pct_relu": now.fates.dead_pct_relu,
        "fvu": now.fvu,
        "l0": now.l0,
        "b_dec_distance": bias.distance,
        "b_dec_cos": bias.cos,
        "mean_in_bias": bias.mean_in_bias,
        "mean_in_features": bias.mean_in_features,
        "always_on": int(now.always_on.sum()),
        "always_on_l0_pct": now.always_on_l0_pct,
        "collateral_dead": collateral_dead(setup, now),
        "mmcs": mmcs_of(setup),
    }


def measure_final(setup: RunSetup, trainer: Trainer, now: Evaluation, read: Tokens) -> Final:
    """Return what is measured of a trained SAE beyond its evaluation `now`, with it."""
    sae = setup.sae
    compared = isinstance(sae, TopK) and sae.precision != "float32"
    selection = compare_selection(sae, map(setup.to_sae_input, read())) if compared else None  # type: ignore[arg-type]
    return Final(
        now, setup.align(), bias_of(setup, now), collateral_dead(setup, now), mmcs_of(setup),
        trainer.dead_pct_window(), selection,
    )  # fmt: skip


def bias_of(setup: RunSetup, now: Evaluation) -> Bias:
    return bias_against(setup.tokens.mean, setup.centering.undo(setup.sae.b_dec.detach()), now.mean_x_hat)


def collateral_dead(setup: RunSetup, now: Evaluation) -> int:
    return int(((setup.fates.selected > 0) & (now.fates.highest <= 0)).sum())


def mmcs_of(setup: RunSetup) -> float | None:
    if setup.true_features is None:
        return None
    return mmcs(folded_decoder(setup.sae, setup.centering), setup.true_features.to(setup.device))


def write_features(setup: RunSetup, final: Final | None) -> None:
    """Write features.parquet, a row per feature."""
    import pandas as pd  # 0.4 s, which a run does not wait for before it trains

    columns = feature_columns("init", setup.fates, setup.alignment)
    if final:
        columns |= feature_columns("final", final.evaluation.fates, final.alignment)
        columns["active_final"] = final.evaluation.active
    frame = pd.DataFrame({name: tensor.detach().cpu().numpy() for name, tensor in columns.items()})
    with atomic_write(setup.directory / "features.parquet") as beside:
        frame.rename_axis("feature").reset_index().to_parquet(beside, index=False)


def feature_columns(when: str, fates: FateCounter, cosine: Tensor) -> dict[str, Tensor]:
    """Return the columns of features.parquet for one moment; `when` is init or final.

    fate: a `Fate`. selected: evaluation tokens on which it was. highest: its largest pre-activation.
    alignment: cos(encoder direction, μ).
    """
    columns = {"fate": fates.fates, "selected": fates.selected, "highest": fates.highest, "alignment": cosine}
    return {f"{name}_{when}": tensor for name, tensor in columns.items()}
