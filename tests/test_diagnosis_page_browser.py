"""The page of a diagnosis in headless Chromium, opened from the disk. `make browser` brings one."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_outliers import diagnose
from sae_outliers.diagnosis.result import Diagnosis, ModelDiagnosis
from tests.browser import IN_A_BROWSER, NARROW, WIDE, Open, Tab, check_legible
from tests.test_diagnose_trained import by_hand
from tests.test_diagnosis_page import of_layers
from tests.test_report import HOSTILE

pytestmark = IN_A_BROWSER
OF_LAYER = {"centerings", "dimensions", "spectrum", "fates_off", "fates_after", "bias"}


@pytest.fixture(scope="module")
def model() -> ModelDiagnosis:
    return of_layers(model=HOSTILE)


@pytest.fixture(scope="module")
def path(model: ModelDiagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.save_page(tmp_path_factory.mktemp("page") / "diagnosis.html")


@pytest.fixture
def tab(open_tab: Open, path: Path) -> Tab:
    return open_tab(path)


def settled(tab: Tab) -> None:
    """Wait until the layer that was chosen last is drawn."""
    tab.page.evaluate("drawing")


def shown_layer(tab: Tab) -> str:
    (heading,) = [one.inner_text() for one in tab.page.locator(".layer h3").all() if one.is_visible()]
    return str(heading)


def figures(tab: Tab) -> set[str]:
    return {
        one.get_attribute("data-chart")
        for one in tab.page.locator("#evidence-figures figure").all()
        if one.is_visible()
    }


def downloaded(tab: Tab, chart: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(tab.download(f'figure[data-chart="{chart}"]', "csv")))


def test_every_figure_of_the_worst_layer_has_marks_and_is_described(tab: Tab, model: ModelDiagnosis) -> None:
    assert shown_layer(tab).startswith("Layer 2:")
    assert figures(tab) == OF_LAYER
    for figure in tab.page.locator("figure[data-chart]").all():
        name = figure.get_attribute("data-chart")
        drawn = figure.locator(".role-mark path:not([fill='transparent']), .role-mark line, .role-mark rect").all()
        assert len(drawn) > 1, name
        assert figure.locator(".plot").get_attribute("aria-label"), name
        assert "Measured on" in figure.locator("figcaption").inner_text(), name
    assert tab.points("dimensions").count() == model[2].d_model
    assert tab.page.evaluate("window.hacked") is None


def test_choosing_a_layer_shows_its_evidence(tab: Tab, model: ModelDiagnosis) -> None:
    for number, how in ((5, "list"), (2, "button"), (1, "button"), (5, "verdict")):
        if how == "list":
            tab.page.get_by_label("Layer", exact=True).select_option(str(number))
        elif how == "button":
            tab.page.get_by_role("button", name="Previous layer").click()
        else:
            tab.page.get_by_role("button", name=f"Show the evidence of Layer {number}").click()
        settled(tab)
        one = model[number]
        assert shown_layer(tab).startswith(f"Layer {number}: {one.verdict.kind}")
        assert tab.page.get_by_label("Layer", exact=True).input_value() == str(number)
        assert figures(tab) == OF_LAYER - ({"bias"} if number == 1 else set())
        rows = downloaded(tab, "centerings")
        assert rows["topk"].tolist() == pytest.approx(one.table["dead by TopK %"].tolist(), rel=1e-6)
        assert tab.points("dimensions").count() == one.d_model
        caption = tab.page.locator('figure[data-chart="spectrum"] figcaption').inner_text()
        assert f"{HOSTILE}, layer {number} " in caption
        cells = tab.page.locator(f'.layer[data-layer="{number}"] tbody tr').first.locator("td").all_inner_texts()
        off = one.conditions["off"]
        assert cells[1:4] == [f"{off.gamma:.2f}", f"{off.dead_pct_topk:.1f}", f"{off.dead_pct_relu:.1f}"]


def test_whoever_chooses_quickly_sees_the_last_choice(tab: Tab, model: ModelDiagnosis) -> None:
    tab.page.evaluate("for (const number of [1, 5, 2, 1, 5]) show(number)")
    settled(tab)
    assert shown_layer(tab).startswith("Layer 5:")
    assert tab.points("dimensions").count() == model[5].d_model == 128
    assert len(tab.page.locator('figure[data-chart="spectrum"] svg').all()) == 1


def hovered(tab: Tab, box: Any) -> dict[str, str]:
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    told = tab.page.locator("#vg-tooltip-element.visible")
    told.wait_for()
    return {
        name.strip(): value.strip()
        for name, value in (row.inner_text().split("\t") for row in told.locator("tr").all())
    }


def test_hovering_over_the_outlier_dimension_tells_its_numbers(tab: Tab, model: ModelDiagnosis) -> None:
    tab.plot("dimensions").scroll_into_view_if_needed()
    highest = min((one.bounding_box() for one in tab.points("dimensions").all()), key=lambda box: box["y"])
    first = model[2].severity.outlier_dims.iloc[0]
    assert hovered(tab, highest) == {
        "dimension": "3",
        "μ": f"{first['mean']:.4f}",
        "σ": f"{first['std']:.4f}",
        "|μ|/σ": f"{first['ratio']:.2f}",
    }


def test_hovering_over_a_bar_of_fates_tells_how_many_features_it_holds(tab: Tab) -> None:
    plot = tab.plot("fates_off")
    plot.scroll_into_view_if_needed()
    rows = downloaded(tab, "fates_off")
    bars = plot.locator(".mark-rect.role-mark path")
    assert bars.count() == len(rows)
    tallest = int(rows["features"].argmax())
    assert hovered(tab, bars.nth(tallest).bounding_box())["features"] == str(rows["features"][tallest])


def test_the_keyboard_walks_through_dimensions(tab: Tab, model: ModelDiagnosis) -> None:
    tab.plot("dimensions").focus()
    reading = tab.page.locator('figure[data-chart="dimensions"] .reading')
    tab.page.keyboard.press("End")
    assert reading.inner_text().startswith("dimension 3, μ ")
    tab.page.keyboard.press("Home")
    assert reading.inner_text().endswith(f"|μ|/σ {(abs(model[2].severity.mean) / model[2].severity.std).min():.2f}")
    tab.page.get_by_role("button", name="Next layer").click()
    settled(tab)
    assert reading.inner_text().startswith("Hover")  # of the layer before there is nothing left


def test_a_point_of_a_layer_opens_its_evidence(tab: Tab) -> None:
    plot = tab.plot("gamma_by_layer")
    plot.focus()
    tab.page.keyboard.press("End")  # the last layer
    tab.page.keyboard.press("Enter")
    settled(tab)
    assert shown_layer(tab).startswith("Layer 5:")
    plot.scroll_into_view_if_needed()
    first = min((one.bounding_box() for one in tab.points("gamma_by_layer").all()), key=lambda box: box["x"])
    tab.page.mouse.click(first["x"] + first["width"] / 2, first["y"] + first["height"] / 2)
    settled(tab)
    assert shown_layer(tab).startswith("Layer 1:")


def test_recipes_are_copied(tab: Tab, model: ModelDiagnosis) -> None:
    recipe = tab.page.locator(".recipe", has=tab.page.get_by_role("heading", name="SAELens")).first
    recipe.get_by_role("button").click()
    recipe.get_by_role("button", name="Copy").get_by_text("Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == model[2].recommended.recipe("saelens")


def test_figures_download_for_a_white_page(open_tab: Open, path: Path) -> None:
    svg = open_tab(path, look="dark").download('figure[data-chart="spectrum"]', "svg")
    assert svg.startswith("<svg")
    assert svg.count("1c2330") > 1  # the ink of the light page
    assert "e8ebf0" not in svg


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_cut_off_and_all_is_legible(open_tab: Open, path: Path, look: str, size: tuple[int, int]) -> None:
    check_legible(open_tab(path, size, look), size, look)


def test_it_prints_the_layer_that_is_shown(tab: Tab) -> None:
    tab.page.emulate_media(media="print")
    assert not tab.page.locator("#chooser").is_visible()
    assert shown_layer(tab).startswith("Layer 2:")
    assert tab.page.pdf().startswith(b"%PDF")


@pytest.fixture(scope="module")
def of_sae() -> Diagnosis:
    sae, x = by_hand(in_bias=False)
    return diagnose(x, sae=sae)


def test_an_sae_on_tokens_by_themselves_needs_no_choice(open_tab: Open, of_sae: Diagnosis, tmp_path: Path) -> None:
    tab = open_tab(of_sae.save_page(tmp_path / "p.html"))
    assert tab.page.locator("#chooser").count() == 0
    assert figures(tab) == OF_LAYER
    rows = downloaded(tab, "fates_trained")
    assert rows["features"].sum() == 17
    assert tab.plot("fates_trained").locator(".mark-rect.role-mark path").count() == len(rows)
    assert of_sae.trained is not None
    assert of_sae.trained.advice.reason in tab.page.locator("#verdict").inner_text()
