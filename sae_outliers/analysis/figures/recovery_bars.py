"""Death before and after training by condition."""

from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sae_outliers.analysis.conditions import conditions_of
from sae_outliers.analysis.figures import figure
from sae_outliers.analysis.figures.style import STYLE
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.tables.recovery import recovery, recovery_by_model

MODELS_ACROSS = 7  # groups of bars side by side


@figure("recovery_bars", "trained", ("dead_pct_init_topk", "dead_pct_final_topk"))
def recovery_bars(inputs: Inputs) -> Figure | None:
    """Draw the natural layers, medians over those of a model."""
    table = recovery(inputs)
    return draw(recovery_by_model(table)) if len(table) and conditions_of(table) else None


@mpl.rc_context(STYLE)
def draw(models: pd.DataFrame) -> Figure:
    """Draw, for each model and condition, an outlined bar for death at initialisation and a solid one for the end.

    `models` is `recovery_by_model`. The number above a bar is that of the end; a condition without one was not run.
    """
    models = models.sort_values("γ", ignore_index=True)
    across = min(MODELS_ACROSS, len(models))
    down = -(-len(models) // across)
    figure = Figure(figsize=(max(4.4, 1.05 * across + 0.6), 2.0 * down + 0.8), layout="constrained")
    grid = figure.subplots(down, 1, sharey=True, squeeze=False)
    for row, axes in enumerate(grid.flat):
        _bars(axes, models.iloc[row * across : (row + 1) * across])
        axes.set(xlim=(-0.55, across - 0.45), ylim=(0, 110))
    figure.supylabel("features dead by TopK (%)", fontsize=9)
    figure.legend(handles=_bar_keys(models), loc="outside upper center", ncols=6 if across > 5 else 3)
    return figure


def _bars(axes: Axes, models: pd.DataFrame) -> None:
    shown = conditions_of(models)
    width, unknown = 0.8 / len(shown), pd.Series(np.nan, index=models.index)
    for number, condition in enumerate(shown.values()):
        color = condition.color
        init, end = (models.get(f"{condition.name} {when}", unknown) for when in ("init", "end"))
        x = np.arange(len(models)) + (number - (len(shown) - 1) / 2) * width
        axes.bar(x, init, 0.84 * width, color=color, alpha=0.18)
        axes.bar(x, end, 0.84 * width, color=color)
        axes.bar(x, init, 0.84 * width, facecolor="none", edgecolor=_dark(color), lw=0.7)
        for place, height, percent in zip(x, np.maximum(init, end), end, strict=True):
            if not np.isnan(percent):
                axes.annotate(
                    f"{percent:.0f}", (place, height), (0, 1.5), textcoords="offset points", ha="center", fontsize=6
                )
    axes.set_xticks(range(len(models)), [_label(row) for row in models.to_dict("records")], fontsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def _dark(color: str) -> tuple[float, ...]:
    return tuple(0.6 * part for part in to_rgb(color))


def _label(model: dict[Any, Any]) -> str:
    name = fill(model["model"].replace("_", "_ "), 17).replace("_ ", "_")  # underscores, too, are places to break
    return f"{name}\n{model['layers']}\nγ {model['γ']:.2g}"


def _bar_keys(models: pd.DataFrame) -> list[Patch]:
    keys = [Patch(facecolor=condition.color, label=name) for name, condition in conditions_of(models).items()]
    outlined = Patch(facecolor="0.9", edgecolor="0.3", lw=0.7, label="at initialisation")
    return [*keys, outlined, Patch(facecolor="0.45", label="after training")]
