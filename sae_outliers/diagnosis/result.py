"""A diagnosis: plain figures, arrays and tables, shown as text in a terminal and as HTML in a notebook."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tabulate import tabulate

from sae_outliers.diagnosis.centering import Centering
from sae_outliers.diagnosis.condition import Condition
from sae_outliers.diagnosis.recentre import recentred
from sae_outliers.diagnosis.recipes import recipe
from sae_outliers.diagnosis.severity import Severity
from sae_outliers.diagnosis.trained import TrainedSae
from sae_outliers.diagnosis.verdict import FINE, Verdict
from sae_outliers.results.features import Fate
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.stats.theory import bias_half_time

PAGE = "diagnosis.html"
LR, BATCH_SIZE = 3e-4, 4096  # SAELens' defaults
# features that more tokens would show alive are mentioned from this percent of all, and this share of the dead, on
UNSEEN_PCT, UNSEEN_SHARE = 1.0, 0.2


@dataclass(frozen=True)
class Recommendation:
    """What to do before training.

    Attributes:
        verdict: its kind (`fine`, `centre`, `whiten`), and the figures that decided in a sentence.
        centering: the map to put before the SAE, fitted to these tokens; the identity where all is fine.
    """

    verdict: Verdict
    centering: Centering

    def recipe(self, library: str) -> str:
        """Return lines to paste that do this in a library.

        That is `saelens` (its LanguageModelSAETrainingRunner), `saelens_trainer` (its SAETrainer, on activations of
        your own), `dictionary_learning`, `sparsify` or a plain `torch` loop.

        Raises:
            ValueError: another library.
        """
        return recipe(library, self.centering)


@dataclass(frozen=True)
class Diagnosis:
    """One layer: whether an SAE of this size would lose features on it, why, and what to do.

    Attributes:
        severity: γ three ways, spectrum, μ and σ by dimension [d_model], outlier dimensions.
        conditions: by centering (off, mean, geometric_median, whiten) the fates at initialisation.
        recommended: verdict, centering and recipes.
        features: a row per feature: alignment with μ, and by centering `fate_<name>` (a `Fate`) and `active_<name>`.
        n_tokens, d_model: of the activations.  n_features, k: of the SAE.
        preprocessing: what was done to each token first.
        seed: of the SAE's directions.
        trained: of an SAE that was given: its features as they are now; None without one.
        layer: its number in a model; None where only activations were given.
    """

    severity: Severity
    conditions: Mapping[str, Condition]
    recommended: Recommendation
    features: pd.DataFrame
    n_tokens: int
    d_model: int
    n_features: int
    k: int
    preprocessing: str
    seed: int
    trained: TrainedSae | None = None
    layer: int | None = None
    more_notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        return self.recommended.verdict

    @property
    def table(self) -> pd.DataFrame:
        """Return a row per centering: γ of what the encoder multiplies, dead and always-on features."""
        rows = {
            name.replace("_", " "): {
                "γ": condition.gamma,
                "dead by TopK %": condition.dead_pct_topk,
                "dead by ReLU %": condition.dead_pct_relu,
                "always on": condition.always_on,
            }
            for name, condition in self.conditions.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("centering")

    def bias_half_time(self, lr: float = LR, batch_size: int = BATCH_SIZE) -> float:
        """Return after about how many steps of Adam b_dec, left to itself, would hold half of the mean.

        `theory.bias_half_time` says for what it was measured; elsewhere it tells the order of magnitude.
        """
        offset_max = np.abs(self.severity.mean).max()
        return float(bias_half_time(offset_max, lr, self.severity.gamma, batch_size, self.n_features))

    @property
    def bias_steps_told(self) -> str:
        """Return `bias_half_time` in words: its order of magnitude is all that is known."""
        return f"{float(f'{self.bias_half_time():.1g}'):,.0f}"

    @property
    def notes(self) -> list[str]:
        """Return sentences on what these figures do not settle."""
        notes = list(self.more_notes)
        dead, off = self.conditions["off"].dead_pct_topk, self.conditions["off"].unseen
        if off.tokens_needed and off.pct > max(UNSEEN_PCT, UNSEEN_SHARE * dead):
            notes.append(
                f"{self.n_tokens} tokens are few for {self.n_features} features: about {off.pct:.1f} % of the features "
                f"count as dead and would be found alive on more tokens; about {off.tokens_needed:,} tokens would do"
            )
        if self.n_tokens <= 2 * self.d_model:
            notes.append(
                f"{self.n_tokens} tokens of width {self.d_model} do not determine the covariance: effective rank and "
                f"whitening are too good; take {10 * self.d_model:,} tokens or more"
            )
        return notes

    def recentred(self) -> SparseAutoencoder:
        """Return a copy of the trained SAE to fine-tune, whose dead features read centred tokens.

        Nothing else changes: the living features compute what they did, from the same input.

        Raises:
            ValueError: no SAE was diagnosed, or whitening is recommended, which cannot be given to some features only.
        """
        centering = self.recommended.centering
        if self.trained is None:
            raise ValueError("no SAE was diagnosed: give it as sae=")
        if centering.linear is not None:
            raise ValueError("whitening changes what living features read: train an SAE on whitened tokens instead")
        dead = torch.from_numpy(self.trained.features["fate"].to_numpy() != Fate.ALIVE).to(
            centering.affine.shift.device
        )
        return recentred(self.trained.sae, dead, self.trained.input_map.apply(centering.affine.shift))

    def save_page(self, path: Path | str = PAGE) -> Path:
        """Write it as a page of figures, one HTML file that opens by itself, and return where it is."""
        return ModelDiagnosis("the activations that were given", {self.layer or 0: self}).save_page(path)

    def _lines(self) -> list[str]:
        s = self.severity
        head = "" if self.layer is None else f"layer {self.layer}: "
        lines = [
            f"{head}{self.verdict.kind.upper()}. {self.verdict.reason}.",
            f"γ {s.gamma:.2f} as the SAE is given it ({self.preprocessing}); post-LN {s.gamma_postln:.2f}, raw "
            f"{s.gamma_raw:.2f}; effective rank {s.effective_rank:.1f} of {self.d_model}; {_outlier(s)}",
        ]
        if self.verdict.kind != FINE:
            steps = self.bias_steps_told
            lines.append(
                f"b_dec, left to learn the mean by itself, would hold half of it after some {steps} steps at lr {LR:g}"
            )
        return [*lines, f"{self.n_features} features, k = {self.k}, at initialisation, on {self.n_tokens} tokens:"]

    def __repr__(self) -> str:
        after = [] if self.trained is None else ["", *self.trained.lines()]
        return "\n".join([*self._lines(), _text(self.table), *after, *(f"Note: {note}." for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return a small table, for notebooks."""
        first, *others = self._lines()
        after = [] if self.trained is None else self.trained.lines()
        notes = [f"Note: {note}." for note in self.notes]
        below = "".join(f"<p>{escape(line)}</p>" for line in [*after, *notes])
        above = f"<p><b>{escape(first)}</b></p>" + "".join(f"<p>{escape(line)}</p>" for line in others)
        return f"<div>{above}{self.table.to_html(float_format='{:.2f}'.format, border=0)}{below}</div>"


@dataclass(frozen=True)
class ModelDiagnosis:
    """The layers of a model.

    Attributes:
        model: its name.
        layers: by number; an interrupted diagnosis has those that were finished.
        data: the name of what the model read; empty where that is not known.
    """

    model: str
    layers: Mapping[int, Diagnosis]
    data: str = ""

    def __getitem__(self, layer: int) -> Diagnosis:
        """Return the diagnosis of a layer."""
        return self.layers[layer]

    def __iter__(self) -> Iterator[Diagnosis]:
        return iter(self.layers.values())

    @property
    def table(self) -> pd.DataFrame:
        """Return a row per layer: verdict, γ three ways, effective rank, and dead by TopK under each centering."""
        return pd.DataFrame([table_row(one) for one in self]).set_index("layer")

    def save_page(self, path: Path | str = PAGE) -> Path:
        """Write all layers as a page of figures, one HTML file that opens by itself, and return where it is.

        Raises:
            ValueError: no layer was finished.
        """
        from sae_outliers.diagnosis.page.write import write_page  # loads Altair, 1 s

        write_page(Path(path), self)
        return Path(path)

    def __repr__(self) -> str:
        if not self.layers:
            return f"{self.model}: no layer was finished"
        one = next(iter(self))
        counts = self.table["verdict"].value_counts()
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        size = f"{one.n_features} features, k = {one.k}, {one.n_tokens} tokens, {one.preprocessing}"
        least_sure = max(self, key=lambda diagnosis: diagnosis.conditions["off"].unseen.pct)
        head = f"{self.model}: {summary} ({size}; dead by TopK in %)"
        return "\n".join(
            [head, _text(self.table), *(f"Note, layer {least_sure.layer}: {note}." for note in least_sure.notes)]
        )

    def _repr_html_(self) -> str:
        """Return a small table, for notebooks."""
        if not self.layers:
            return f"<p>{escape(repr(self))}</p>"
        head = repr(self).splitlines()[0]
        return f"<div><p><b>{escape(head)}</b></p>{self.table.to_html(float_format='{:.2f}'.format, border=0)}</div>"


def table_row(one: Diagnosis) -> dict[str, object]:
    """Return the row of a layer in its model's table."""
    s = one.severity
    row: dict[str, object] = {"layer": one.layer, "verdict": one.verdict.kind, "γ": s.gamma}
    row |= {"γ post-LN": s.gamma_postln, "γ raw": s.gamma_raw, "eff. rank": s.effective_rank}
    row |= {name.replace("_", " "): condition.dead_pct_topk for name, condition in one.conditions.items()}
    row |= {"ReLU": one.conditions["off"].dead_pct_relu, "always on": one.conditions["off"].always_on}
    return row if one.trained is None else row | one.trained.row()


def _outlier(s: Severity) -> str:
    if s.outlier_dims.empty:
        return "no dimension varies"
    first = s.outlier_dims.iloc[0]
    carried = f"{first['pct_of_mean']:.0f} % of ‖μ‖², {first['pct_of_variance']:.0f} % of ‖σ‖²"
    return f"dimension {int(first['dimension'])} stands out most (|μ|/σ {first['ratio']:.1f}; {carried})"


def _text(table: pd.DataFrame) -> str:
    return tabulate(table.reset_index().to_dict("list"), headers="keys", floatfmt=".2f", showindex=False)
