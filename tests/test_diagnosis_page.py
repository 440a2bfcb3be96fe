"""The page of a diagnosis: its numbers against the diagnosis, what it leaves out, and that it is text and small."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_outliers import diagnose
from sae_outliers.diagnosis.page import data
from sae_outliers.diagnosis.page.sections import layers_in_words
from sae_outliers.diagnosis.page.write import write_page
from sae_outliers.diagnosis.result import Diagnosis, ModelDiagnosis
from sae_outliers.results.features import Fate
from tests.report_page import ReadPage
from tests.test_diagnose import SIZE, planted
from tests.test_diagnose_trained import by_hand
from tests.test_report import HOSTILE


def of_layers(**names: Any) -> ModelDiagnosis:
    """Layers of each verdict: fine, to be centred (the worst), to be whitened."""
    tokens = {1: planted(0.1, 12_000), 2: planted(4.0), 5: planted(1.0, d_model=128, rank=2)}
    layers = {number: replace(diagnose(x, **SIZE), layer=number) for number, x in tokens.items()}
    return ModelDiagnosis(**{"model": "mine", "layers": layers, "data": "text"} | names)


@pytest.fixture(scope="module")
def model() -> ModelDiagnosis:
    return of_layers()


@pytest.fixture(scope="module")
def page(model: ModelDiagnosis, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    return ReadPage(model.save_page(tmp_path_factory.mktemp("page") / "diagnosis.html"))


@pytest.fixture(scope="module")
def of_sae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, ReadPage]:
    """Of tokens by themselves, with an SAE that has a feature of each fate."""
    sae, x = by_hand(in_bias=False)
    d = diagnose(x, sae=sae)
    return d, ReadPage(d.save_page(tmp_path_factory.mktemp("page") / "sae.html"))


def headings(page: ReadPage) -> list[str]:
    return [str(one["id"]) for one in page.elements.of("section")]


def rows_of(page: ReadPage, dataset: str, layer: int) -> pd.DataFrame:
    return pd.DataFrame([row for row in page.rows(dataset) if row["layer"] == layer])


# --- verdict ----------------------------------------------------------------------------------------------


def test_each_layer_has_a_line_with_its_verdict_and_what_decided(model: ModelDiagnosis, page: ReadPage) -> None:
    (lines,) = (rows for name, rows in page.elements.tables.items() if name == "")
    verdicts = {row[0]: row[1:] for row in lines if row[0].startswith("Layer ")}
    assert [verdicts[f"Layer {number}"][0] for number in (1, 2, 5)] == ["fine", "centre", "whiten"]
    for number, one in model.layers.items():
        assert verdicts[f"Layer {number}"][1] == f"{one.verdict.reason}."


def test_the_worst_layer_is_shown_first(model: ModelDiagnosis, page: ReadPage) -> None:
    dead = {number: one.conditions["off"].dead_pct_topk for number, one in model.layers.items()}
    worst = max(dead, key=lambda number: dead[number])
    assert page.data["values"]["shown"] == worst
    shown = [one["data-layer"] for one in page.elements.of("div") if "data-layer" in one and "hidden" not in one]
    assert shown == [str(worst)]


# --- numbers ----------------------------------------------------------------------------------------------


def test_the_figures_of_each_layer_are_those_of_its_diagnosis(model: ModelDiagnosis, page: ReadPage) -> None:
    for number, one in model.layers.items():
        s = one.severity
        eigenvalues = rows_of(page, "spectrum", number)
        np.testing.assert_allclose(eigenvalues["eigenvalue"], s.spectrum[eigenvalues["rank"] - 1], rtol=1e-6)
        assert eigenvalues["rank"].iloc[0] == 1
        dimensions = rows_of(page, "dimensions", number)
        assert set(dimensions["dimension"]) == set(range(one.d_model))
        np.testing.assert_allclose(dimensions["mean"], s.mean[dimensions["dimension"]], rtol=1e-6)
        np.testing.assert_allclose(dimensions["std"], s.std[dimensions["dimension"]], rtol=1e-6)
        bars = rows_of(page, "centerings", number)
        np.testing.assert_allclose(bars["topk"], one.table["dead by TopK %"], rtol=1e-6)
        np.testing.assert_allclose(bars["relu"], one.table["dead by ReLU %"], rtol=1e-6)
        np.testing.assert_allclose(bars["gamma"], one.table["γ"], atol=1e-6)
    gammas = pd.DataFrame(page.rows("gammas"))
    assert set(gammas["of"]) == {"raw, as given", "post-LN"}
    as_given = gammas[gammas["of"] == "raw, as given"]
    np.testing.assert_allclose(as_given["gamma"], model.table["γ"], rtol=1e-6)


@pytest.mark.parametrize("dataset", ["fates_off", "fates_after"])
def test_histograms_hold_every_feature_with_its_fate_where_it_points(
    dataset: str, model: ModelDiagnosis, page: ReadPage
) -> None:
    for number, one in model.layers.items():
        recommended = one.verdict.centering if one.verdict.kind != "fine" else "mean"
        condition = one.conditions["off" if dataset == "fates_off" else recommended]
        bars = rows_of(page, dataset, number)
        sums = bars.groupby("fate")["features"].sum()
        assert bars["features"].sum() == one.n_features
        dead = 100 * (one.n_features - sums.get("alive", 0) - sums.get("always on", 0)) / one.n_features
        assert dead == pytest.approx(condition.dead_pct_topk)
        assert 100 * sums.get("never positive", 0) / one.n_features == pytest.approx(condition.dead_pct_relu)
        assert sums.get("always on", 0) == condition.always_on
        alignment = one.features["alignment"][condition.fates == Fate.ALIVE]
        for _, bar in bars[bars["fate"] == "alive"].iterrows():
            within = alignment.between(bar["low"], bar["high"]) & (condition.active[alignment.index] <= 0.9)
            assert bar["features"] == pytest.approx(within.sum(), abs=1)


def test_bars_stand_on_each_other(page: ReadPage) -> None:
    for _, bin_ in pd.DataFrame(page.rows("fates_off")).groupby(["layer", "low"]):
        assert bin_["below"].tolist() == [0, *bin_["top"][:-1]]
        assert (bin_["top"] - bin_["below"]).tolist() == bin_["features"].tolist()


def test_how_long_a_bias_would_take_is_the_estimate_of_the_law_where_there_is_something_to_wait_for(
    model: ModelDiagnosis, page: ReadPage
) -> None:
    rows = pd.DataFrame(page.rows("bias"))
    assert set(rows["layer"]) == {2, 5}
    for row in rows.to_dict("records"):
        assert row["steps"] == pytest.approx(model[row["layer"]].bias_half_time(lr=row["lr"]), rel=1e-6)
    assert rows.loc[rows["default"], "lr"].tolist() == [3e-4] * 2
    _, caption = page.data["values"]["told"]["2"]["bias"]
    assert caption.startswith("An estimate, not a measurement")
    assert "bias" not in page.data["values"]["told"]["1"]


def test_captions_say_on_what_it_was_measured(page: ReadPage) -> None:
    told = page.data["values"]["told"]["2"]
    assert set(told) == {"centerings", "dimensions", "spectrum", "fates_off", "fates_after", "bias"}
    for description, caption in told.values():
        assert "Measured on 6,000 tokens of mine, layer 2 (data: text), raw activations" in caption
        assert description.endswith(".")
    for name in ("centerings", "fates_off", "fates_after"):
        assert told[name][1].endswith("SAE at initialisation: 512 features, k = 8, seed 0.")


def test_the_listing_is_the_table_of_the_model(model: ModelDiagnosis, page: ReadPage) -> None:
    assert page.data["tables"]["layers"] == model.table.reset_index().to_csv(index=False)


def test_what_to_do_is_what_each_diagnosis_recommends(model: ModelDiagnosis, page: ReadPage) -> None:
    codes = [text for tag, text in page.elements.texts if tag == "code"]
    for number in (2, 5):
        for library in ("saelens", "saelens_trainer", "dictionary_learning", "sparsify", "torch"):
            assert model[number].recommended.recipe(library) in codes
    said = "".join(text for _, text in page.elements.texts)
    assert "Layer 1: train as you would" in said
    assert "Layer 5: whiten" in said


def test_layers_are_named_in_runs() -> None:
    assert layers_in_words([7]) == "Layer 7"
    assert layers_in_words([4, 1, 2, 3, 9]) == "Layers 1 to 4, 9"


# --- activations by themselves, and an SAE ------------------------------------------------------------------


def test_activations_by_themselves_make_a_page_without_layers(of_sae: tuple[Diagnosis, ReadPage]) -> None:
    _, page = of_sae
    assert headings(page) == ["verdict", "evidence", "trained", "do"]
    assert page.elements.of("select") == []
    assert "Measured on 4,000 tokens of the activations that were given, raw activations" in page.text


def test_a_trained_sae_is_shown_with_its_own_figures(of_sae: tuple[Diagnosis, ReadPage]) -> None:
    d, page = of_sae
    found = d.trained
    assert found is not None
    bars = pd.DataFrame(page.rows("fates_trained")).groupby("fate")["features"].sum()
    assert bars.to_dict() == {"always on": 1, "alive": 14, "never positive": 1, "positive, never selected": 1}
    texts = [text.strip() for tag, text in page.elements.texts if tag in ("dt", "dd")]
    facts = dict(zip(texts[::2], texts[1::2], strict=True))
    assert facts["alive"] == f"{100 * 15 / 17:.1f} %"
    assert facts["never positive"] == facts["positive, never selected"] == f"{100 / 17:.1f} %"
    assert facts["always on"] == "1"
    assert facts["mean held by b_dec"] == f"{100 * found.bias.mean_in_bias:.1f} %"
    assert facts["mean held by features"] == f"{100 * found.bias.mean_in_features:.1f} %"
    assert facts["FVU"] == f"{found.fvu:.3f}"
    assert facts["L0"] == f"{found.l0:.1f}"
    assert found.advice.action.upper() in page.text


# --- the file -----------------------------------------------------------------------------------------------


def test_what_a_name_holds_is_text(tmp_path: Path) -> None:
    sae, x = by_hand(in_bias=False)
    one = diagnose(x, sae=sae)
    assert one.trained is not None
    hostile = replace(one, trained=replace(one.trained, source=HOSTILE), more_notes=(HOSTILE,), layer=3)
    path = tmp_path / "p.html"
    write_page(path, ModelDiagnosis(HOSTILE, {3: hostile}, HOSTILE), ["python", HOSTILE], [HOSTILE])
    page = ReadPage(path)
    assert page.elements.of("img") == page.elements.of("b") == []
    assert all("onerror" not in attributes for _, attributes in page.elements.found)
    assert len(page.elements.of("script")) == 4
    said = "".join(text for _, text in page.elements.texts)
    assert said.count(HOSTILE) >= 6
    _, caption = page.data["values"]["told"]["3"]["spectrum"]
    assert HOSTILE in caption


def test_the_page_asks_nobody_for_anything(page: ReadPage) -> None:
    for _, attributes in page.elements.found:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))


def test_the_same_diagnosis_gives_the_same_bytes(model: ModelDiagnosis, page: ReadPage, tmp_path: Path) -> None:
    assert model.save_page(tmp_path / "again.html").read_text("utf-8") == page.text


def test_a_wide_model_of_many_layers_stays_small_and_says_what_is_left_out(tmp_path: Path) -> None:
    d_model, n_layers = 4096, 126
    one = diagnose(planted(2.0, 300), n_features=64, k=4)
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(n_layers, d_model)), rng.lognormal(size=(n_layers, d_model))
    mean[:, 7] = 1e3 * std[:, 7]
    outliers = pd.DataFrame({"dimension": [7], "mean": [1.0], "std": [1.0], "ratio": [1e3]})
    features = pd.concat([one.features] * 100, ignore_index=True).assign(alignment=rng.normal(size=6400) / 64)
    wide = replace(one, d_model=d_model, features=features, n_features=6400)
    layers = {
        i: replace(
            wide,
            layer=i,
            severity=replace(
                one.severity, mean=mean[i], std=std[i], spectrum=np.geomspace(1e3, 1e-3, d_model), outlier_dims=outliers
            ),
        )
        for i in range(n_layers)
    }
    page = ReadPage(ModelDiagnosis("wide", layers).save_page(tmp_path / "wide.html"))
    assert len(page.text.encode()) < 6e6
    for layer in (0, n_layers - 1):
        dimensions = rows_of(page, "dimensions", layer)
        assert len(dimensions) == data.dimensions_each(n_layers) < d_model
        ratio = np.abs(mean[layer]) / std[layer]
        assert set(np.argsort(-ratio)[: data.OUTERMOST]) <= set(dimensions["dimension"])
        assert dimensions.loc[dimensions["label"] != "", "dimension"].tolist() == [7]
        caption = page.data["values"]["told"][str(layer)]["dimensions"][1]
        assert f"Drawn are {len(dimensions)} of 4,096" in caption
        assert len(rows_of(page, "spectrum", layer)) <= data.MOST_EIGENVALUES
        assert "of 4,096 are drawn" in page.data["values"]["told"][str(layer)]["spectrum"][1]


def test_dimensions_without_a_mean_or_variation_are_counted_and_not_drawn(tmp_path: Path) -> None:
    x = planted(3.0)
    x[:, 20], x[:, 21] = 5.0, 0.0
    page = ReadPage(diagnose(x, **SIZE).save_page(tmp_path / "p.html"))
    assert {20, 21} & set(rows_of(page, "dimensions", 0)["dimension"]) == set()
    told = page.data["values"]["told"]["0"]
    assert "2 without a mean or without variation" in told["dimensions"][1]
    assert "Left out as rounding: 2 below" in told["spectrum"][1]


def test_few_tokens_are_said_at_the_top(tmp_path: Path) -> None:
    d = diagnose(planted(1.0, 100), **SIZE)
    page = ReadPage(d.save_page(tmp_path / "p.html"))
    warnings = [text for tag, text in page.elements.texts if tag == "p" and "do not determine the covariance" in text]
    assert warnings
    assert d.notes


def test_no_layer_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine: no layer was finished, so there is nothing to show"):
        ModelDiagnosis("mine", {}).save_page(tmp_path / "p.html")
    assert list(tmp_path.iterdir()) == []


def test_every_chart_is_one_that_vega_can_draw(page: ReadPage, of_sae: tuple[Diagnosis, ReadPage]) -> None:
    from vl_convert import vegalite_to_vega

    drawn = set()
    for one in (page, of_sae[1]):
        for name, chart in one.data["charts"].items():
            datasets = {dataset: one.rows(dataset) for dataset in one.data["datasets"]}
            assert vegalite_to_vega({**chart["spec"], "datasets": datasets, "width": 300})["marks"], name
            drawn.add(name)
    assert len(drawn) == 9


def test_altair_is_loaded_for_a_page_and_not_for_a_diagnosis(tmp_path: Path) -> None:
    code = (
        "import sys, torch, sae_outliers\n"
        "d = sae_outliers.diagnose(torch.randn(300, 8), n_features=16, k=2)\n"
        "repr(d), d._repr_html_()\n"
        "print('altair' in sys.modules)\n"
        f"print(d.save_page({str(tmp_path / 'p.html')!r}))\n"
        "print('altair' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(tmp_path / "p.html"), "True"]
