"""The command from end to end: records and a made-up reference in, tables and figures out, errors in one sentence."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_outliers import aggregate
from sae_outliers.records import Record, run_dir, write_record
from sae_outliers.reference import COLUMNS, in_published_domains, read_reference
from sae_outliers.tables import mixed_settings
from tests.test_figures import curves
from tests.test_tables import frame, make_record, many_layers, trained

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sae_outliers.aggregate", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def store(results_dir: Path, *records: Record) -> None:
    for record in records:
        directory = run_dir(results_dir, record.model, record.layer, record.run_id)
        directory.mkdir(parents=True, exist_ok=True)
        write_record(directory, record)
        if record.train_steps:
            curves(centerings=("off",)).drop(columns=["run_id", "model", "sae", "centering"]).to_parquet(
                directory / "curves.parquet"
            )


def handful() -> list[Record]:
    """Two models of three layers, off and on, one layer trained."""
    records = []
    for i, model in enumerate(("glm2", "b")):
        for layer in (1, 2, 3):
            gamma = 1.0 + i + layer / 2
            common = dict(domain=("genomic", "vision")[i], last_layer=3, gamma=gamma)
            off = dict(dead_pct_init_topk=20 * gamma - layer, dead_pct_init_relu=gamma**2)
            on = dict(dead_pct_init_topk=0.5, dead_pct_init_relu=0.0)
            records.append(make_record(model, layer, run_id="off", **common, **off))
            records.append(make_record(model, layer, run_id="on", centering="on", **common, **on))
    middle = records[2]
    return [*records, make_record(**vars(middle) | {"run_id": "trained"} | trained())]


def write_reference(path: Path, rows: pd.DataFrame | None = None) -> Path:
    """Invented rows in the published columns."""
    rows = many_layers(4, 5) if rows is None else rows
    domain = rows["model"].map(lambda model: "biology" if model in ("m1", "m3") else "language")
    made = rows.assign(
        hidden_dim=64, dead_pct_init_centered=1.5, domain=domain, model=rows["model"].replace("m0", "glm2")
    )
    made[list(COLUMNS)].to_csv(path, index=False)
    return path


# --- end to end


def test_records_become_tables_and_figures_and_nothing_else(tmp_path: Path) -> None:
    store(tmp_path / "results", *handful())
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = ("spearman", "models", "conditions", "theory", "coverage")
    written = {f"{name}.{kind}" for name in names for kind in ("csv", "md", "tex")}
    assert {path.name for path in (tmp_path / "results/tables").iterdir()} == written
    drawn = {f"{n}.{k}" for n in ("gamma_vs_death", "gamma_by_depth", "death_curves") for k in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "results/figures").iterdir()} == drawn
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"runs", "tables", "figures"}
    tables = {name: pd.read_csv(tmp_path / f"results/tables/{name}.csv") for name in names}
    assert tables["spearman"]["layers"].iloc[0] == 6  # the layer trained as well counts once
    assert tables["spearman"]["ρ"].iloc[0] == pytest.approx((17 / 17.5) ** 0.5)  # in order, but two share a γ
    assert list(tables["models"]["TopK on worst"]) == [0.5, 0.5]
    assert tables["conditions"].set_index(["model", "centering"]).loc[("glm2", "off"), "end TopK"] == 5
    assert "Layers of one model are not independent" in (tmp_path / "results/tables/spearman.md").read_text()
    assert "topk, off: 6/6, 1 of them trained" in done.stdout
    assert "results/tables" in done.stdout


def test_the_reference_alone(tmp_path: Path) -> None:
    write_reference(tmp_path / "published.csv")
    done = run(tmp_path, "reference=published.csv")
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "results/tables/reference_spearman.csv")
    rows = many_layers(4, 5)
    expected = rows["gamma"].corr(rows["dead_pct_init_topk"], method="spearman")
    assert found["published ρ"].iloc[0] == pytest.approx(expected)
    assert not [column for column in found if str(column).startswith("own")]
    assert not (tmp_path / "results/tables/spearman.csv").exists()
    assert f"{expected:.3f}" in done.stdout


def test_the_reference_beside_own_records(tmp_path: Path) -> None:
    store(tmp_path / "out", *handful())
    write_reference(tmp_path / "published.csv")
    done = run(tmp_path, "results_dir=out", "reference=published.csv")
    assert done.returncode == 0, done.stderr
    models: Any = pd.read_csv(tmp_path / "out/tables/reference_models.csv").set_index(["domain", "model"])
    assert models.loc[("language", "glm2"), "own layers"] == 3  # the published domain of glm2
    assert models.loc[("language", "glm2"), "published layers"] == 5
    assert models.loc[("language", "glm2"), "published TopK on worst"] == 1.5
    assert pd.isna(models.loc[("vision", "b"), "published layers"])
    theory = pd.read_csv(tmp_path / "out/tables/reference_theory.csv")
    assert {"own MAE", "published MAE", "own bias", "published bias"} < set(theory)


def test_allow_mixed_says_what_it_mixed(tmp_path: Path) -> None:
    store(tmp_path / "results", *(make_record("a", i, run_id=str(s), seed=s) for i in (1, 2, 3) for s in (0, 1)))
    done = run(tmp_path, "allow_mixed=true")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "results/tables/models.md").read_text()):
        assert "Mixed, since allow_mixed=true: seed (0 in 3, 1 in 3 of the records)" in text
    assert pd.read_csv(tmp_path / "results/tables/models.csv")["layers"][0] == 3


def test_a_new_call_leaves_nothing_of_a_former_one(tmp_path: Path) -> None:
    store(tmp_path / "results", *handful())
    assert run(tmp_path).returncode == 0
    (tmp_path / "results/tables/mine.csv").write_text("kept\n")
    done = run(tmp_path, "where=\"centering == 'on'\"")
    assert "none, for no record has centering=off" in done.stdout
    assert {path.stem for path in (tmp_path / "results/figures").iterdir()} == {"gamma_by_depth"}
    left = {path.stem for path in (tmp_path / "results/tables").iterdir()}
    assert left == {"models", "conditions", "coverage", "mine"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "There are no records below results/runs"),
        (["reference=nowhere.csv"], "The reference nowhere.csv cannot be read"),
        (["resultsdir=x"], "Key 'resultsdir' not in 'AggregateConfig'"),
        (["allow_mixed=perhaps"], "not a valid bool"),
    ],
)
def test_errors_end_with_status_1(tmp_path: Path, overrides: list[str], message: str) -> None:
    done = run(tmp_path, *overrides)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_mixed_records_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "results", make_record(layer=1), make_record(layer=2), make_record(layer=3, n_eval=100))
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "The records differ in n_eval (100 in 1, 20000 in 2 of the records), so their figures do not belong in "
        "one table: narrow them, for example with 'where=\"n_eval == 20000\"', or pass allow_mixed=true\n"
    )
    assert not (tmp_path / "results/tables").exists()
    assert run(tmp_path, 'where="n_eval == 20000"').returncode == 0


# --- reading and checking


def test_where_selects() -> None:
    rows = frame(make_record(), make_record("b", **trained()), make_record("c", 2))
    assert list(aggregate.select(rows, "train_steps == 0 and model != 'c'")["model"]) == ["a"]
    assert aggregate.select(rows, None) is rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("layers == 1", "is not a condition on the records' columns"),
        ("layer ==", "is not a condition on the records' columns"),
        ("layer + 1", "does not say yes or no"),
        ("layer", "does not say yes or no"),
        ("layer == 7", "holds for none of the 1 records"),
        ("@pd.read_csv('x')", "is not a condition on the records' columns"),
    ],
)
def test_a_bad_where_is_named(where: str, message: str) -> None:
    with pytest.raises(ValueError, match="where=") as error:
        aggregate.select(frame(make_record()), where)
    assert message in str(error.value)


def test_the_refusal_quotes_text_values_as_a_condition_needs_them() -> None:
    rows = frame(make_record(), make_record(layer=2, preprocessing="raw"), make_record(layer=3))
    message = aggregate.refusal(mixed_settings(rows))
    assert "preprocessing (postln in 2, raw in 1 of the records)" in message
    assert "where=\"preprocessing == 'postln'\"" in message
    assert len(aggregate.select(rows, message.split('where="')[1].split('"')[0])) == 2


def test_records_of_another_version_are_named() -> None:
    with pytest.raises(ValueError, match="No record has the column\\(s\\) fvu"):
        aggregate.check_columns(frame(make_record()).drop(columns="fvu"))


def test_expected_layers_come_from_model_configs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# @package _global_\nmodel:\n  name: a\n  last_layer: 3\n")
    (tmp_path / "af.yaml").write_text("name: af\nfirst_layer: 0\nlast_layer: 0\nloader: {x: '${y}'}\n")
    assert aggregate.layers_listed_in(tmp_path) == {"a": range(1, 4), "af": range(0, 1)}
    (tmp_path / "wrong.yaml").write_text("domain: vision\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml is no model config"):
        aggregate.layers_listed_in(tmp_path)
    with pytest.raises(ValueError, match="holds no model configs"):
        aggregate.layers_listed_in(tmp_path / "nowhere")


def test_a_reference_names_its_faults(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "r.csv")
    whole = pd.read_csv(path)
    whole.drop(columns=["gamma", "domain"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) gamma, domain"):
        read_reference(path)
    whole[:0].to_csv(path, index=False)
    with pytest.raises(ValueError, match="has no rows"):
        read_reference(path)
    whole.astype({"gamma": object}).replace({"gamma": {whole["gamma"][0]: "?"}}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="cells that are not numbers in gamma"):
        read_reference(path)


def test_published_domains() -> None:
    published = pd.DataFrame({"model": ["glm2", "esm"], "domain": ["language", "biology"]})
    own = pd.DataFrame({"model": ["glm2", "evo", "vit"], "domain": ["genomic", "genomic", "vision"]})
    assert list(in_published_domains(own, published)["domain"]) == ["language", "biology", "vision"]
    assert list(in_published_domains(own, published[:1])["domain"]) == ["language", "genomic", "vision"]
