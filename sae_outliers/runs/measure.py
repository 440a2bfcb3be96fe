"""What is measured of a run's SAE on the evaluation tokens: the points of its death curves, and its end."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sae_outliers.results.curves import Point
from sae_outliers.runs.setup import RunSetup, Tokens
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.evaluation import Evaluation, FateCounter, SelectionChange, compare_selection, evaluate
from sae_outliers.training.trainer import Trainer
from sae_outliers.utils.files import atomic_write


@dataclass(frozen=True)
class Bias:
    """How far the bias has come on its way to the mean; the centering's shift counts as part of it."""

    distance: float  # ||b_dec - μ|| / ||μ||, both in the space of the preprocessed activations
    cos: float


@dataclass(frozen=True)
class Final:
    """A trained SAE on the evaluation tokens.

    Attributes:
        dead_pct_window: of features that did not fire in the last `dead_window` training tokens.
        selection: what precision=bf16_select changes; None with float32.
    """

    evaluation: Evaluation
    alignment: Tensor
    bias: Bias
    dead_pct_window: float | None
    selection: SelectionChange | None


def curve_point(setup: RunSetup, read: Tokens) -> Point:
    """Return the figures of a point of the death curves."""
    now, bias = _evaluate(setup, read), bias_of(setup)
    return {
        "dead_pct": now.dead_pct,
        "dead_pct_topk": now.fates.dead_pct_topk,
        "dead_pct_relu": now.fates.dead_pct_relu,
        "fvu": now.fvu,
        "l0": now.l0,
        "b_dec_distance": bias.distance,
        "b_dec_cos": bias.cos,
    }


def measure_final(setup: RunSetup, trainer: Trainer, read: Tokens) -> Final:
    sae = setup.sae
    compared = isinstance(sae, TopK) and sae.precision != "float32"
    selection = compare_selection(sae, map(setup.to_sae_input, read())) if compared else None  # type: ignore[arg-type]
    return Final(_evaluate(setup, read), setup.align(), bias_of(setup), trainer.dead_pct_window(), selection)


def bias_of(setup: RunSetup) -> Bias:
    mean = setup.tokens.mean.float()
    bias = setup.centering.undo(setup.sae.b_dec.detach())
    return Bias(((bias - mean).norm() / mean.norm()).item(), F.cosine_similarity(bias, mean, dim=0).item())


def _evaluate(setup: RunSetup, read: Tokens) -> Evaluation:
    tokens: Iterator[Tensor] = map(setup.rescale_mean, read())
    return evaluate(setup.sae, setup.centering, tokens, setup.tokens.variance.sum().item())


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
