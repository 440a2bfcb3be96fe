"""Figures are built from the data that they are given, and are written whole."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from sae_outliers.analysis.figures import death_curves, gamma_by_depth, gamma_vs_death
from sae_outliers.analysis.figures.gamma_by_depth import spread
from sae_outliers.analysis.write import write_figure
from tests.test_tables import frame, make_record, many_layers

pytestmark = pytest.mark.filterwarnings("error")  # a layout that fails only warns


def curves(models: int = 1, layers: int = 1, centerings: tuple[str, ...] = ("off", "on")) -> pd.DataFrame:
    """Death curves that fall from 80 %, and from 0 % where centered."""
    tokens = np.arange(0, 600_000, 50_000)
    runs = [(f"m{m}", i, c) for m in range(models) for i in range(layers) for c in centerings]
    return pd.concat(
        pd.DataFrame(
            {
                "tokens": tokens,
                "dead_pct_topk": (80 - 5 * layer) * np.exp(-tokens / 2e5) * (centering == "off"),
                "dead_pct_relu": 20 * np.exp(-tokens / 4e5) * (centering == "off"),
                "dead_pct_window": np.where(tokens < 100_000, np.nan, 60 * np.exp(-tokens / 3e5)),
            }
        ).assign(
            run_dir=f"{model}/{layer}/{centering}",
            model=model,
            layer=layer,
            sae="topk",
            revival="none",
            centering=centering,
            condition="TopK",
            gamma=1.0,
            planted_gamma=np.nan,
            b_dec_distance=1 - tokens / 1e6,
        )
        for model, layer, centering in runs
    )


def test_gamma_vs_death_shows_every_layer_and_the_closed_form() -> None:
    rows = many_layers()
    figure = gamma_vs_death.draw(rows)
    for axes, name in zip(figure.axes, ("topk", "relu"), strict=True):
        points = np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])
        expected = rows[["gamma", f"dead_pct_init_{name}"]].to_numpy()
        np.testing.assert_allclose(points[points[:, 0].argsort()], expected[expected[:, 0].argsort()])
    gamma, percent = (np.asarray(along) for along in figure.axes[1].lines[0].get_data())
    np.testing.assert_allclose(percent, 100 * norm.cdf(-norm.ppf(1 - 1 / 20_000) / gamma), atol=1e-9)


def test_one_theory_curve_for_each_set_of_sizes() -> None:
    figure = gamma_vs_death.draw(frame(make_record(gamma=1.0), make_record(gamma=1.5, n_eval=100)))
    assert [len(axes.lines) for axes in figure.axes] == [4, 2]


@pytest.mark.parametrize(("largest", "scale"), [(2.0, "linear"), (40.0, "log")])
def test_a_wide_range_of_gamma_is_logarithmic(largest: float, scale: str) -> None:
    figure = gamma_vs_death.draw(frame(make_record(gamma=1.0), make_record(gamma=largest)))
    assert {axes.get_xscale() for axes in figure.axes} == {scale}


def test_gamma_by_depth_names_every_model() -> None:
    rows = pd.concat([many_layers(5), frame(make_record("single", 0, last_layer=0, domain="vision"))])
    figure = gamma_by_depth.draw(rows)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["language", "protein", "vision"]
    assert {text.get_text() for axes in panels for text in axes.texts} == set(rows["model"])
    assert all(len(axes.lines) == 6 for axes in panels)


def test_spread_keeps_the_gap_and_moves_no_more_than_it_must() -> None:
    np.testing.assert_allclose(spread(np.array([0.1, 0.5, 0.9]), 0.1), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(spread(np.array([0.5, 0.5]), 0.1), [0.45, 0.55])


@pytest.mark.parametrize(("models", "layers"), [(1, 1), (2, 3), (5, 1)])
def test_death_curves_have_a_panel_per_model(models: int, layers: int) -> None:
    figure = death_curves.draw(curves(models, layers))
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == [f"m{i} (topk)" for i in range(models)]
    lines = 2 * 3 * (1 if layers == 1 else 1 + layers)  # centerings, measures, runs and their median
    assert all(len(axes.lines) == lines for axes in panels)
    assert {line.get_linestyle() for line in panels[0].lines} == {"-", "--"}


def test_death_curves_of_a_revival_have_a_panel_beside_those_without() -> None:
    plain = curves(2, centerings=("off",))
    auxk = plain.assign(revival="auxk", run_dir=plain["run_dir"] + "auxk", dead_pct_topk=1.0)
    figure = death_curves.draw(pd.concat([auxk, plain]))
    panels = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["m0 (topk)", "m0 (topk, auxk)", "m1 (topk)", "m1 (topk, auxk)"]
    assert [float(np.max(axes.lines[1].get_ydata())) for axes in panels[:2]] == [80.0, 1.0]


def test_death_curves_of_a_run_that_measured_no_window() -> None:
    death_curves.draw(curves().assign(dead_pct_window=np.nan))


def test_figures_are_written_as_png_and_pdf(tmp_path: Path) -> None:
    write_figure(gamma_by_depth.draw(many_layers()), "f", tmp_path)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2
