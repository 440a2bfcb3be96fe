"""The page of a sweep in headless Chromium, opened from the disk. `make browser` brings one."""

from pathlib import Path

import pandas as pd
import pytest

from sae_outliers.analysis.aggregation import aggregate
from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.results.record import read_records
from tests.browser import IN_A_BROWSER, NARROW, WIDE, Open, Tab, check_legible, luminance
from tests.many_records import write_sweep
from tests.report_page import ReadPage
from tests.test_report import HOSTILE, sweep  # noqa: F401 - a fixture

pytestmark = IN_A_BROWSER


@pytest.fixture
def tab(open_tab: Open, sweep: Path) -> Tab:  # noqa: F811
    return open_tab(sweep / "report.html")


@pytest.fixture(scope="module")
def layers(sweep: Path) -> pd.DataFrame:  # noqa: F811
    """The untrained records of natural layers, centering=off, by γ."""
    records = read_records(sweep)
    chosen = records["planted_gamma"].isna() & (records["centering"] == "off") & (records["run_id"] != "trained")
    return records[chosen].sort_values("gamma", ignore_index=True)


# --- figures --------------------------------------------------------------------------------------------


def test_every_figure_has_marks(tab: Tab, layers: pd.DataFrame) -> None:
    figures = tab.page.locator("figure[data-chart]").all()
    assert len(figures) >= 10
    for figure in figures:
        drawn = figure.locator(".role-mark path, .role-mark line, .role-mark rect").all()
        assert len(drawn) > 1, figure.get_attribute("data-chart")
        assert figure.locator(".plot").get_attribute("aria-label")
    assert tab.points("gamma_vs_topk").count() == len(layers)


def place(tab: Tab, chart: str, order: int) -> tuple[float, float]:
    """The middle of the point that is the `order`th from the left."""
    tab.plot(chart).scroll_into_view_if_needed()
    boxes = sorted((one.bounding_box() for one in tab.points(chart).all()), key=lambda box: box["x"] + box["width"] / 2)
    return boxes[order]["x"] + boxes[order]["width"] / 2, boxes[order]["y"] + boxes[order]["height"] / 2


def test_hovering_tells_the_numbers_of_the_record(tab: Tab, layers: pd.DataFrame) -> None:
    tab.page.mouse.move(*place(tab, "gamma_vs_topk", -1))
    told = tab.page.locator("#vg-tooltip-element.visible")
    told.wait_for()
    record = layers.iloc[-1]
    assert record["model"] == HOSTILE
    cells = [row.inner_text().split("\t") for row in told.locator("tr").all()]
    shown = {name.strip(): value.strip() for name, value in cells}
    assert shown["model"] == HOSTILE
    assert shown["γ"] == f"{record['gamma']:.2f}"
    assert shown["dead by TopK (%)"] == f"{record['dead_pct_init_topk']:.1f}"
    assert tab.page.evaluate("window.hacked") is None


def check_card(tab: Tab, record: pd.Series) -> None:
    card = tab.page.locator("dialog#card[open]")
    card.wait_for()
    assert card.locator("h3").inner_text() == f"{record['model']}, layer {record['layer']} of {record['last_layer']}"
    assert card.locator('dd[data-column="gamma"]').inner_text() == f"{record['gamma']:.2f}"
    row = card.locator("tr", has=tab.page.locator('td[data-column="centering"]', has_text="off")).first
    assert row.locator('[data-column="dead_pct_init_topk"]').inner_text() == f"{record['dead_pct_init_topk']:.1f}"
    assert row.locator('[data-column="dead_pct_init_relu"]').inner_text() == f"{record['dead_pct_init_relu']:.1f}"


@pytest.mark.parametrize("chart", ["gamma_vs_topk", "gamma_by_depth", "theory_topk_vs_measured"])
def test_a_click_opens_the_card_of_a_layer(tab: Tab, layers: pd.DataFrame, chart: str) -> None:
    tab.page.mouse.click(*place(tab, chart, 0))
    tab.page.locator("dialog#card[open]").wait_for()
    title = tab.page.locator("dialog#card h3").inner_text()
    (record,) = (one for _, one in layers.iterrows() if title.startswith(f"{one['model']}, layer {one['layer']} "))
    check_card(tab, record)


def test_the_keyboard_walks_through_points_and_opens_the_card(tab: Tab, layers: pd.DataFrame) -> None:
    plot = tab.plot("gamma_vs_topk")
    plot.focus()
    reading = tab.page.locator('figure[data-chart="gamma_vs_topk"] .reading')
    for key, expected in (("ArrowRight", 0), ("ArrowRight", 1), ("End", len(layers) - 1), ("ArrowLeft", -2)):
        tab.page.keyboard.press(key)
        record = layers.iloc[expected]
        words = f"model {record['model']}, layer {record['layer']}, γ {record['gamma']:.2f}, "
        assert reading.inner_text().startswith(words)
        tab.page.wait_for_function(
            "() => document.querySelectorAll('figure[data-chart=gamma_vs_topk] .plot path[fill=transparent][d]').length"
        )
    tab.page.keyboard.press("Enter")
    check_card(tab, layers.iloc[-2])
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("dialog#card[open]").count() == 0
    assert plot.evaluate("plot => plot === document.activeElement")


def test_the_card_of_a_trained_layer_has_its_saes(tab: Tab, sweep: Path) -> None:  # noqa: F811
    tab.plot("gamma_by_depth").focus()
    for _ in range(20):
        tab.page.keyboard.press("ArrowRight")
        if "model glm2, layer 2" in tab.page.locator('figure[data-chart="gamma_by_depth"] .reading').inner_text():
            break
    tab.page.keyboard.press("Enter")
    cells = tab.page.locator('dialog#card td[data-column="dead_pct_final_topk"]')
    records = read_records(sweep)
    (record,) = records[records["run_id"] == "trained"].to_dict("records")
    assert cells.all_inner_texts() == [f"{record['dead_pct_final_topk']:.1f}"]
    tab.page.locator("#card-after").click()
    assert tab.page.locator("dialog#card h3").inner_text().startswith("glm2, layer 3 ")


def test_death_curves_of_other_runs_and_of_another_kind_of_death(tab: Tab) -> None:
    panels = tab.page.locator("#curve-panels figure")
    assert panels.count() == 3
    panels.first.get_by_role("button", name="Remove").click()
    assert panels.count() == 2
    tab.page.get_by_label("dead by ReLU", exact=True).check()
    tab.page.wait_for_function("() => document.querySelectorAll('#curve-panels .plot svg').length === 2")
    tab.page.get_by_role("button", name="Remove all").click()
    assert panels.count() == 0
    tab.page.get_by_label("Layer", exact=True).select_option(label="glm2, layer 2, γ 2.00")
    tab.page.get_by_role("button", name="Add").click()
    panels.locator("svg").wait_for()
    rows = pd.read_csv(pd.io.common.StringIO(tab.download("#curve-panels figure", "csv")))
    assert rows["dead_pct_topk"].tolist() == [80, 30, 5]
    assert (rows["value"] == rows["dead_pct_relu"]).all()


# --- controls -------------------------------------------------------------------------------------------


def test_the_filter_holds_for_figures_and_the_table(tab: Tab, layers: pd.DataFrame) -> None:
    tab.page.get_by_label("Filter models").fill("glm2")
    tab.page.wait_for_function("() => document.querySelector('#filter-found').textContent.startsWith('1 of 3')")
    of_one = layers[layers["model"] == "glm2"]
    tab.page.wait_for_function(
        f"() => document.querySelectorAll('figure[data-chart=gamma_vs_topk] .mark-symbol.role-mark "
        f"path:not([fill=transparent])').length === {len(of_one)}"
    )
    shown = [row for row in tab.page.locator('[data-table="models"] tbody tr').all() if row.is_visible()]
    assert [row.locator("td").first.inner_text() for row in shown] == ["glm2"]
    rows = pd.read_csv(pd.io.common.StringIO(tab.download('figure[data-chart="gamma_vs_topk"]', "csv")))
    assert sorted(rows["gamma"]) == pytest.approx(sorted(of_one["gamma"]))
    tab.page.get_by_label("Filter models").fill("vision")  # a domain
    assert tab.page.locator("#filter-found").inner_text() == "2 of 3 models"


def test_columns_sort_by_their_numbers_with_blanks_last(tab: Tab, sweep: Path) -> None:  # noqa: F811
    table = pd.read_csv(sweep / "tables/models.csv")
    listing = tab.page.locator('[data-table="models"]')
    head = listing.locator("th", has=tab.page.get_by_role("button", name="TopK off worst"))
    for direction in ("descending", "ascending"):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == direction
        expected = table.sort_values("TopK off worst", ascending=direction == "ascending")["model"]
        assert [row.locator("td").first.inner_text() for row in listing.locator("tbody tr").all()] == list(expected)
    blanks = listing.locator("th", has=tab.page.get_by_role("button", name="TopK on worst"))
    for _ in range(2):
        blanks.get_by_role("button").click()
        assert listing.locator("tbody tr").last.locator("td").first.inner_text() == HOSTILE


def test_the_copy_button_copies(tab: Tab) -> None:
    recipe = tab.page.locator(".recipe").first
    recipe.get_by_role("button").click()
    recipe.get_by_role("button", name="Copy").get_by_text("Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == recipe.locator("code").inner_text()


def test_figures_download_as_svg_for_a_white_page_and_tables_as_csv(
    open_tab: Open,
    sweep: Path,  # noqa: F811
    layers: pd.DataFrame,
) -> None:
    tab = open_tab(sweep / "report.html", look="dark")
    svg = tab.download('figure[data-chart="gamma_vs_topk"]', "svg")
    assert svg.startswith("<svg")
    assert svg.count("1c2330") > 1  # the ink of the light page
    assert "e8ebf0" not in svg
    assert tab.download('[data-table="theory"]', "csv") == (sweep / "tables/theory.csv").read_text()


# --- who reads it, and where ----------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_cut_off_and_all_is_legible(
    open_tab: Open,
    sweep: Path,  # noqa: F811
    look: str,
    size: tuple[int, int],
) -> None:
    tab = open_tab(sweep / "report.html", size, look)
    check_legible(tab, size, look)


def test_it_follows_the_reader_into_the_dark_and_onto_paper(open_tab: Open, sweep: Path) -> None:  # noqa: F811
    tab = open_tab(sweep / "report.html", look="dark")
    ink = "getComputedStyle(document.querySelector('figure[data-chart=gamma_vs_topk] .role-axis-title text')).fill"
    assert luminance(tab.page.evaluate(ink)) > 0.5
    tab.page.emulate_media(media="print")
    tab.page.wait_for_function(f"() => {ink} === 'rgb(28, 35, 48)'")
    assert not tab.page.locator("nav").is_visible()
    assert tab.page.pdf().startswith(b"%PDF")
    tab.page.emulate_media(media="screen", color_scheme="light")
    assert luminance(tab.page.evaluate(ink)) < 0.1


def test_all_that_can_be_pressed_has_a_name_and_is_reached_by_the_keyboard(tab: Tab) -> None:
    nameless = tab.page.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter(one =>"
        " !(one.getAttribute('aria-label') || one.textContent.trim() || one.closest('label'))).length"
    )
    assert nameless == 0
    assert tab.page.locator('[tabindex]:not([tabindex="0"])').count() == 0
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_a_full_sweep_of_every_model(open_tab: Open, tmp_path: Path) -> None:
    write_sweep(tmp_path, most_layers=2)
    aggregate(AggregateConfig(results_dir=str(tmp_path), allow_mixed=True))
    tab = open_tab(tmp_path / "report.html")
    rows = ReadPage(tmp_path / "report.html").rows("layers")
    assert tab.points("gamma_vs_topk").count() == len(rows) == 37 * 3
    assert (tmp_path / "report.html").stat().st_size < 6e6
    tab.plot("gamma_vs_topk").scroll_into_view_if_needed()
    lowest = max((one.bounding_box() for one in tab.points("gamma_vs_topk").all()), key=lambda box: box["y"])
    tab.page.mouse.move(lowest["x"] + lowest["width"] / 2, lowest["y"] + lowest["height"] / 2)
    tab.page.locator("#vg-tooltip-element.visible").wait_for()  # though the closed form lies over it
    bars = tab.plot("recovery_by_condition").locator(".mark-rect.role-mark path")
    assert bars.count() == 3 * 19 * 4
