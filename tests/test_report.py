"""The page of a sweep: its numbers against the records, that it asks nobody for anything, and, slow, in a browser."""

import json
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from sae_outliers.analysis import make
from sae_outliers.analysis.aggregation import aggregate, all_tables, read_inputs
from sae_outliers.analysis.config import AggregateConfig
from sae_outliers.analysis.reference import read_reference, read_trained_reference
from sae_outliers.analysis.report import data
from sae_outliers.analysis.report.captions import measured_on
from sae_outliers.analysis.report.charts import readable
from sae_outliers.analysis.report.page import recipes, write_report
from sae_outliers.pages.encode import encode, json_in_html, plain
from sae_outliers.results.layout import run_dir
from sae_outliers.results.record import read_records, write_row
from tests.conftest import CONF, ROOT
from tests.report_page import ReadPage
from tests.test_aggregate import handful, planted, store, write_reference, write_trained_reference
from tests.test_readme import blocks, printed_by
from tests.test_tables import frame, make_record, trained

HOSTILE = '<img src=x onerror="window.hacked=1"></script><b>&'  # a model's name


def written(folder: Path, reference: str | None = None, reference_trained: str | None = None) -> ReadPage:
    """The page, without the figures beside it, which take seconds."""
    config = AggregateConfig(results_dir=str(folder), reference=reference, reference_trained=reference_trained)
    inputs, mixed = read_inputs(config)
    published = read_reference(Path(reference)) if reference else None
    theirs = read_trained_reference(Path(reference_trained)) if reference_trained else None
    tables = list(all_tables(inputs, mixed, published, theirs))
    path = folder / "written.html"
    write_report(path, config, inputs, tables, published, mixed, make.left_out(inputs))
    return ReadPage(path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two models, one layer trained, another at two planted γ; and the page of them."""
    folder = tmp_path_factory.mktemp("sweep")
    others = [make_record(**vars(one) | {"outlier_dims": [[412, 38.25]]}) for one in handful()]
    hostile = make_record(HOSTILE, 1, domain="vision", last_layer=1, gamma=9.0, dead_pct_init_topk=70.5)
    store(folder, *others, *planted())
    directory = run_dir(folder, "hostile", 1, "hostile")
    directory.mkdir(parents=True)
    write_row(directory, asdict(hostile))  # the name itself is no path
    for path in (folder / "runs").glob("*/*/*/curves.parquet"):
        curve = pd.read_parquet(path)
        curve.assign(mean_in_bias=np.linspace(0, 1, len(curve)), always_on=3.0).to_parquet(path)
    aggregate(AggregateConfig(results_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path) -> ReadPage:
    return ReadPage(sweep / "report.html")


# --- the file -------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_for_anything(page: ReadPage) -> None:
    addresses = [
        address
        for _, attributes in page.elements.found
        for name in ("src", "href", "srcset", "action", "data")
        if (address := attributes.get(name))
    ]
    assert [address for address in addresses if not address.startswith(("#", "data:,"))] == []
    (policy,) = [one["content"] for one in page.elements.of("meta") if one.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_it_is_small(page: ReadPage) -> None:
    assert 0.5e6 < len(page.text.encode()) < 1.5e6


def test_what_a_record_says_is_text(page: ReadPage) -> None:
    names = {row["model"] for row in page.rows("layers")}
    assert HOSTILE in names
    assert page.elements.of("img") == page.elements.of("b") == []
    assert all("onerror" not in attributes for _, attributes in page.elements.found)
    assert HOSTILE in {row[0] for row in page.elements.tables["models"]}
    scripts = page.elements.of("script")
    assert [script.get("type") for script in scripts] == ["application/json", None, None, None]


def test_the_same_records_give_the_same_bytes(sweep: Path, page: ReadPage) -> None:
    assert written(sweep).text == page.text


def test_a_page_that_cannot_be_written_leaves_the_former_one(
    sweep: Path, page: ReadPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("sae_outliers.analysis.report.page.html_of", full)
    with pytest.raises(ValueError, match="cannot be written"):
        aggregate(AggregateConfig(results_dir=str(sweep)))
    assert (sweep / "report.html").read_text() == page.text
    assert not list(sweep.glob(".aggregate*"))


def test_a_former_page_goes_with_the_tables(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    with make.replaced(tmp_path):
        pass
    assert not (tmp_path / "report.html").exists()


# --- numbers --------------------------------------------------------------------------------------------


def test_every_layer_is_there_with_the_numbers_of_its_record(sweep: Path, page: ReadPage) -> None:
    records = read_records(sweep)
    natural = records[records["planted_gamma"].isna()]
    untrained = natural[natural["run_id"] != "trained"].set_index(["model", "layer", "centering"])
    rows = [*page.rows("layers"), *page.rows("others")]
    assert len(rows) == len(untrained) == 13
    for row in rows:
        record = untrained.loc[(row["model"], row["layer"], row["centering"])]
        for column in ("gamma", "dead_pct_init_topk", "dead_pct_init_relu", "effective_rank", "theory_pct_topk"):
            assert row[column] == pytest.approx(record[column], rel=1e-6)
        if row["model"] != HOSTILE:
            assert row["outlier_dims"] == "412 (38.2)"
    assert {row["centering"] for row in page.rows("layers")} == {"off"}


def test_tables_are_those_that_are_written_beside_the_page(sweep: Path, page: ReadPage) -> None:
    shown = {"coverage", "models", "spearman", "theory", "recovery", "planted"}
    assert set(page.data["tables"]) == shown
    for name in shown:
        assert page.data["tables"][name] == (sweep / f"tables/{name}.csv").read_text()
        written_rows = (sweep / f"tables/{name}.md").read_text().split("\n\n")[0].splitlines()
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written_rows if HOSTILE not in line]
        on_page = [row for row in page.elements.tables[name] if HOSTILE not in "".join(row)]
        assert on_page == [cells[0], *cells[2:]]


def test_death_curves_are_those_of_the_runs(sweep: Path, page: ReadPage) -> None:
    curves, runs = page.data["values"]["curves"], page.rows("runs")
    assert [source["title"] for source in curves["sources"]] == [
        "b, layer 1, planted γ 20.00",
        "b, layer 1, planted γ 50.00",
        "glm2, layer 2, γ 2.00",
    ]
    for source in curves["sources"]:
        ((number, along, *percents),) = source["curves"]
        path = sweep / f"runs/{runs[number]['model']}/{runs[number]['layer']}/{runs[number]['run_id']}/curves.parquet"
        curve = pd.read_parquet(path)
        assert curves["tokens"][along] == curve["tokens"].tolist()
        for measure, values in zip(curves["measures"], percents, strict=True):
            np.testing.assert_allclose(np.array(values, dtype=float), curve[measure], atol=0.005)


def test_long_curves_are_thinned_to_a_bound_with_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_POINTS", 50)
    runs = frame(*(make_record(layer=i, **trained()) for i in (1, 2)))
    runs = runs.assign(run_dir=["x", "y"], planted_gamma=np.nan)
    tokens = np.arange(101)
    points = [pd.DataFrame({"run_dir": name, "tokens": tokens, "dead_pct_topk": tokens / 2}) for name in ("x", "y")]
    found = data.death_curves(runs, pd.concat(points))
    (shown,) = found["tokens"]
    assert shown == [*range(0, 101, 5)]
    assert found["sources"][1]["curves"] == [[1, 0, [token / 2 for token in shown]]]
    assert found["sources"][1]["caption"].endswith("One point of 5 is shown.")


def test_how_the_bias_takes_over_is_shown_of_planted_layers(page: ReadPage) -> None:
    rows = page.rows("bias")
    assert {row["planted_gamma"] for row in rows} == {20, 50}
    assert [row["mean_in_bias"] for row in rows[:3]] == [0, 50, 100]
    assert {f"bias_{name}" for name in data.BIAS} <= set(page.data["charts"])


def test_ends_of_planted_layers_are_those_of_the_table(sweep: Path, page: ReadPage) -> None:
    table = pd.read_csv(sweep / "tables/planted.csv").set_index("planted γ")
    for number, (death, prefix) in enumerate({"TopK": "", "ReLU": "ReLU "}.items()):
        rows = page.rows(f"planted_{number}")
        assert [(row["model"], row["death"], row["condition"]) for row in rows] == [("b", death, "TopK")] * 2
        for row in rows:
            for when in ("init", "end"):
                assert row[when] == table.loc[row["planted_gamma"], f"TopK {prefix}{when}"]


def test_bars_are_medians_over_the_layers_of_a_model(sweep: Path, page: ReadPage) -> None:
    (bar,) = page.rows("recovery")
    (row,) = pd.read_csv(sweep / "tables/recovery.csv").to_dict("records")
    assert (bar["model"], bar["condition"]) == (row["model"], "TopK")
    assert (bar["init"], bar["end"]) == (row["TopK init"], row["TopK end"])
    assert bar["label"] == "glm2 · layer 2, γ 2"


# --- what is left out -----------------------------------------------------------------------------------


def headings(page: ReadPage) -> list[str]:
    return [str(one["id"]) for one in page.elements.of("section")]


def test_a_section_without_anything_is_left_out(tmp_path: Path, page: ReadPage) -> None:
    assert headings(page) == ["coverage", "gamma", "depth", "models", "curves", "recovery", "theory", "again"]
    store(tmp_path / "planted", *planted())
    assert headings(written(tmp_path / "planted")) == ["curves", "recovery", "again"]
    untrained = [record for record in handful() if not record.train_steps]
    store(tmp_path / "untrained", *untrained)
    assert headings(written(tmp_path / "untrained")) == ["coverage", "gamma", "depth", "models", "theory", "again"]


def test_the_published_tables_stand_beside_ours(tmp_path: Path) -> None:
    store(tmp_path, *handful())
    given = {
        "reference": str(write_reference(tmp_path / "published.csv")),
        "reference_trained": str(write_trained_reference(tmp_path / "trained.csv")),
    }
    page = written(tmp_path, **given)
    assert "published" in headings(page)
    names = {f"reference_{name}" for name in ("spearman", "models", "theory", "recovery")}
    assert names <= set(page.data["tables"])
    published = pd.read_csv(tmp_path / "published.csv")
    rows = page.rows("published")
    assert len(rows) == len(published)
    np.testing.assert_allclose([row["gamma"] for row in rows], published["gamma"], rtol=1e-6)
    assert {"published_gamma_vs_topk", "gamma_vs_topk"} <= set(page.data["charts"])


def test_the_reference_alone_makes_a_page(tmp_path: Path) -> None:
    reference = write_reference(tmp_path / "published.csv")
    assert headings(written(tmp_path, reference=str(reference))) == ["published", "again"]


def test_records_without_later_columns_make_a_page(tmp_path: Path) -> None:
    store(tmp_path, *handful()[:3])
    kept = (
        "model",
        "layer",
        "last_layer",
        "sae",
        "centering",
        "gamma",
        "dead_pct_init_topk",
        "n_eval",
        "n_features",
        "k",
        "schema_version",
    )
    for path in (tmp_path / "runs").glob("*/*/*/record.json"):
        row = json.loads(path.read_text())
        path.write_text(json.dumps({name: row[name] for name in kept}))
    page = written(tmp_path)
    assert {"coverage", "depth", "models"} <= set(headings(page))
    assert "gamma_vs_topk" in page.data["charts"]
    assert "gamma_vs_relu" not in page.data["charts"]


def test_the_kit_makes_the_page_that_its_documentation_shows() -> None:
    (example,) = blocks(ROOT / "docs/report.md", "python")
    assert printed_by(example) == "1 figure, 1 table\n"


# --- parts ----------------------------------------------------------------------------------------------


def test_cells_are_what_json_has() -> None:
    cells = [np.float64(1 / 3), float("nan"), None, np.int64(5), 2.0, float("inf"), "a", pd.NA, True]
    assert [plain(cell) for cell in cells] == [0.3333333, None, None, 5, 2, "inf", "a", None, True]


def test_frames_come_back(tmp_path: Path) -> None:
    rows = pd.DataFrame({"a": ["x", "y", "x", "x", "x"], "b": 1.5, "c": [0.1, np.nan, 3, 4, 5]})
    text = f'<script type="application/json" id="page-data">{json_in_html({"datasets": {"d": encode(rows)}})}</script>'
    (tmp_path / "p").write_text(text)
    expected = [row | {"c": None if np.isnan(row["c"]) else row["c"]} for row in rows.to_dict("records")]
    assert ReadPage(tmp_path / "p").rows("d") == expected


def test_the_caption_says_on_what_it_was_measured() -> None:
    rows = frame(*(make_record("minilm", i, seed=s, git_commit="a" * 40 + "-dirty") for i in (1, 2) for s in (0, 1)))
    assert measured_on(rows.assign(sae_seed=rows["seed"])) == (
        "Measured on 2 layers of minilm: 20,000 tokens a layer, 8,192 features, k = 64, post-LN activations, "
        "seed 0, 1, commit aaaaaaa-dirty."
    )
    many = frame(*(make_record(f"m{i}", n_eval=i * 1000, **trained()) for i in range(1, 8)))
    told = measured_on(many[["model", "layer", "n_eval", "train_steps", "train_batch_size"]], trained=True)
    assert told == (
        "Measured on 7 layers of 7 models: 1,000 to 7,000 (7 values) tokens a layer, "
        "trained for 100 steps of 10 tokens."
    )


def test_the_recipe_makes_the_same_page_again() -> None:
    given = {"results_dir": "my results", "where": 'model == "a b" and k > 1', "allow_mixed": True}
    command = recipes(AggregateConfig(**given))["Make this page again"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("aggregate", shlex.split(command)[3:])
    assert {one.name: composed[one.name] for one in fields(AggregateConfig)} == vars(AggregateConfig(**given))


def test_colours_are_seen_on_a_dark_page_and_on_a_white_one() -> None:
    assert readable("#E69F00") == "#e69f00"  # which is bright enough
    for color in ("#332288", "#882255", "#000000"):
        channels = np.array([int(readable(color)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        luminance = ((channels + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]
        assert (luminance + 0.05) / (0.0107 + 0.05) > 2.7  # of #171b22
        assert 1.05 / (luminance + 0.05) > 4.5


def test_every_chart_is_one_that_vega_can_draw(page: ReadPage) -> None:
    from vl_convert import vegalite_to_vega

    for name, chart in page.data["charts"].items():
        own = {"curve": [{"tokens": 1, "value": 2, "condition": "TopK", "seed": 0, "run": "x"}]}
        used = set(page.data["datasets"])
        datasets = {one: page.rows(one) for one in used} | own | chart["spec"].get("datasets", {})
        compiled = vegalite_to_vega({**chart["spec"], "datasets": datasets, "width": 300})
        assert compiled["marks"], name
