"""The command from end to end: records and a made-up reference in, tables and figures out, errors in one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from sae_outliers import aggregate  # which makes its schema known to Hydra
from sae_outliers.analysis.figures import FIGURES
from sae_outliers.analysis.inputs import complete, layers_listed_in
from sae_outliers.analysis.make import remove_stale
from sae_outliers.analysis.reference import (
    COLUMNS,
    TRAINED_COLUMNS,
    in_published_domains,
    read_reference,
    read_trained_reference,
)
from sae_outliers.analysis.select import check_mixed, select, with_settings
from sae_outliers.analysis.tables import TABLES
from sae_outliers.runs.record import Record
from tests.test_recovery import make_curve, make_features, store_run
from tests.test_tables import frame, make_record, many_layers, trained

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sae_outliers.aggregate", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def store(results_dir: Path, *records: Record) -> None:
    for record in records:
        curve, features = make_curve([80, 30, 5]), make_features([0, 1, 2], [0, 0, 2], [0.5, -0.2, -0.6])
        store_run(results_dir, record, *((curve, features) if record.train_steps else ()))


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


def planted() -> list[Record]:
    """A layer at two planted γ, of other sizes than the natural ones."""
    of = dict(domain="vision", last_layer=3, n_features=512, dead_pct_init_topk=90.0, dead_pct_init_relu=40.0)
    return [
        make_record("b", 1, run_id=f"γ{gamma}", planted_gamma=gamma, gamma=gamma, **of, **trained(lr=7.0))
        for gamma in (20.0, 50.0)
    ]


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
    names = ("spearman", "models", "conditions", "theory", "coverage", "recovery", "fates", "alignment", "trained")
    written = {f"{name}.{kind}" for name in names for kind in ("csv", "md", "tex")}
    assert {path.name for path in (tmp_path / "results/tables").iterdir()} == written
    figures = ("gamma_vs_death", "gamma_by_depth", "death_curves", "recovery_bars")
    drawn = {f"{n}.{k}" for n in figures for k in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "results/figures").iterdir()} == drawn
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"runs", "tables", "figures", "report.html"}
    tables = {name: pd.read_csv(tmp_path / f"results/tables/{name}.csv") for name in names}
    assert tables["spearman"]["layers"].iloc[0] == 6  # the layer trained as well counts once
    assert tables["spearman"]["ρ"].iloc[0] == pytest.approx((17 / 17.5) ** 0.5)  # in order, but two share a γ
    assert list(tables["models"]["TopK on worst"]) == [0.5, 0.5]
    assert tables["conditions"].set_index(["model", "centering"]).loc[("glm2", "off"), "end TopK"] == 5
    assert "Layers of one model are not independent" in (tmp_path / "results/tables/spearman.md").read_text()
    assert "topk, off: 6/6, 1 of them trained\n" in done.stdout
    assert tables["recovery"][["TopK init", "TopK end"]].to_numpy().tolist() == [[38, 5]]
    assert "  glm2 (layer 2, γ 2.00): TopK 38.0 -> 5.0\n" in done.stdout
    assert "-cos(W_enc, μ)" in (tmp_path / "results/tables/alignment.md").read_text()
    assert "results/tables" in done.stdout


def test_untrained_records_have_no_part_in_recovery(tmp_path: Path) -> None:
    store(tmp_path / "results", *handful()[:-1])
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.stem for folder in ("tables", "figures") for path in (tmp_path / "results" / folder).iterdir()}
    assert written == {"spearman", "models", "conditions", "theory", "coverage", "gamma_vs_death", "gamma_by_depth"}
    assert "after training" not in done.stdout


def test_planted_records_enter_recovery_alone(tmp_path: Path) -> None:
    store(tmp_path / "natural", *handful())
    store(tmp_path / "both", *handful(), *planted())
    for results_dir in ("natural", "both"):
        done = run(tmp_path, f"results_dir={results_dir}")
        assert done.returncode == 0, done.stderr
    for name in ("spearman", "models", "theory", "conditions", "coverage", "recovery"):
        alone, beside = ((tmp_path / folder / f"tables/{name}.csv").read_text() for folder in ("natural", "both"))
        assert alone == beside
    for name in ("gamma_vs_death", "gamma_by_depth", "death_curves", "recovery_bars"):
        alone, beside = ((tmp_path / folder / f"figures/{name}.png").read_bytes() for folder in ("natural", "both"))
        assert alone == beside
    assert list(pd.read_csv(tmp_path / "both/tables/planted.csv")["planted γ"]) == [20, 50]
    assert set(pd.read_csv(tmp_path / "both/tables/fates.csv")["planted γ"].dropna()) == {20, 50}
    added = {path.stem for path in (tmp_path / "both/figures").iterdir()}
    added -= {path.stem for path in (tmp_path / "natural/figures").iterdir()}
    assert added == {"recovery_time", "planted_curves"}


def test_planted_records_alone(tmp_path: Path) -> None:
    store(tmp_path / "results", *planted())
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "results/tables").iterdir()} == {
        "planted",
        "fates",
        "alignment",
        "trained",
    }
    assert "Spearman" not in done.stdout


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


def write_trained_reference(path: Path) -> Path:
    """Invented rows in the published columns of trained SAEs, 1 to 6 in each."""
    values = {name: float(i) for i, name in enumerate(TRAINED_COLUMNS, start=1)}
    pd.DataFrame(
        [{"model": model, "layer": layer, **values, "domain": "language"} for model, layer in (("glm2", 2), ("x", 9))]
    ).to_csv(path, index=False)
    return path


def test_the_published_trained_table_beside_own_records(tmp_path: Path) -> None:
    store(tmp_path / "results", *handful())
    write_trained_reference(tmp_path / "trained.csv")
    done = run(tmp_path, "reference_trained=trained.csv")
    assert done.returncode == 0, done.stderr
    found: Any = pd.read_csv(tmp_path / "results/tables/reference_recovery.csv").set_index("model")
    assert found["published TopK init"].to_dict() == {"glm2": 1, "x": 1}
    assert found["published + centering end"].to_dict() == {"glm2": 6, "x": 6}
    assert tuple(found.loc["glm2", ["domain", "layer", "own TopK init", "own TopK end"]]) == ("language", 2, 38, 5)
    assert found.loc["x"].filter(like="own").isna().all()
    assert found["own + AuxK end"].isna().all()  # not run


def test_the_published_trained_table_alone(tmp_path: Path) -> None:
    write_trained_reference(tmp_path / "trained.csv")
    done = run(tmp_path, "reference_trained=trained.csv")
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "results/tables/reference_recovery.csv")
    assert list(found) == ["domain", "model", "layer", *(f"published {name}" for name in TRAINED_COLUMNS.values())]


def test_allow_mixed_says_what_it_mixed(tmp_path: Path) -> None:
    store(tmp_path / "results", *(make_record("a", i, run_id=str(s), seed=s) for i in (1, 2, 3) for s in (0, 1)))
    done = run(tmp_path, "allow_mixed=true")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "results/tables/models.md").read_text()):
        assert "Mixed, since allow_mixed=true: seed (0 in 3, 1 in 3 of the records)" in text
    assert pd.read_csv(tmp_path / "results/tables/models.csv")["layers"][0] == 3


def test_told_apart_runs_have_rows_of_their_own_and_nothing_pools_them(tmp_path: Path) -> None:
    ends = {(1e-3, 0): 10.0, (1e-3, 1): 20.0, (1e-3, 2): 60.0, (1e-2, 0): 0.0}
    records = (
        make_record(run_id=f"{lr}{seed}", lr=lr, sae_seed=seed, planted_gamma=5.0, **trained(dead_pct_final_topk=end))
        for (lr, seed), end in ends.items()
    )
    store(tmp_path / "results", *records)
    refused = run(tmp_path)
    assert "by=[lr]" in refused.stderr
    done = run(tmp_path, "by=[lr]")
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "results/tables").iterdir()} == {"trained"}
    assert {path.stem for path in (tmp_path / "results/figures").iterdir()} == {"learning_rate"}
    table = pd.read_csv(tmp_path / "results/tables/trained.csv").set_index("lr")
    assert table["runs"].to_dict() == {1e-3: 3, 1e-2: 1}
    assert table["end TopK"].to_dict() == {1e-3: 20, 1e-2: 0}
    assert table.loc[1e-3, ["end TopK least", "end TopK most"]].tolist() == [10, 60]


def test_only_what_is_named_is_told_apart(tmp_path: Path) -> None:
    records = (make_record(run_id=f"{lr}{k}", lr=lr, k=k, **trained()) for lr in (1e-3, 1e-2) for k in (8, 16))
    store(tmp_path / "results", *records)
    done = run(tmp_path, "by=[lr]")
    assert done.returncode == 1
    assert "differ in k (8 in 2, 16 in 2 of the records)" in done.stderr
    assert run(tmp_path, "by=[k,lr]").returncode == 0
    assert len(pd.read_csv(tmp_path / "results/tables/trained.csv")) == 4
    unknown = run(tmp_path, "by=[lrr]")
    assert "by=lrr is no setting of these records; they have" in unknown.stderr


def test_a_terminal_is_told_nothing_by_the_records_of_others(tmp_path: Path) -> None:
    store(tmp_path / "results", *(make_record("a\x1b]0;x\x07", i) for i in (1, 2, 3)))
    assert not {"\x1b", "\x07"} & set(run(tmp_path).stdout)
    store(tmp_path / "results", make_record("a\x1b", 1, run_id="other", n_eval=7))
    refused = run(tmp_path)
    assert refused.returncode == 1
    assert "\x1b" not in refused.stderr


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
        (["reference_trained=nowhere.csv"], "The reference nowhere.csv cannot be read"),
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
        "one table: narrow them, for example with 'where=\"n_eval == 20000\"', tell them apart with 'by=[n_eval]', "
        "or pass allow_mixed=true\n"
    )
    assert not (tmp_path / "results/tables").exists()
    assert run(tmp_path, 'where="n_eval == 20000"').returncode == 0


def test_tables_go_into_ones_own_folder_and_a_colleagues_is_only_read(tmp_path: Path) -> None:
    store(tmp_path / "theirs", *handful())
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*") if path.is_file()}
    folders = [path for path in (tmp_path / "theirs", *(tmp_path / "theirs").rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    times = [path.stat().st_mtime_ns for path in folders]
    options = aggregate.AggregateConfig(results_dir=str(tmp_path / "theirs"), into=str(tmp_path / "mine"))
    aggregate.main.__wrapped__(options)
    for path in folders:
        path.chmod(0o755)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"tables", "figures", "report.html"}
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*") if path.is_file()} == before
    assert [path.stat().st_mtime_ns for path in folders] == times  # root is let write, and left no trace either


# --- reading and checking


def test_where_selects() -> None:
    rows = frame(make_record(), make_record("b", **trained()), make_record("c", 2))
    assert list(select(rows, "train_steps == 0 and model != 'c'")["model"]) == ["a"]
    assert select(rows, None) is rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("layers == 1", "is not a condition on the records' columns"),
        ("layer ==", "is not a condition on the records' columns"),
        ("layer + 1", "is not a condition on the records' columns"),
        ("layer", "is not a boolean expression"),
        ("layer == 7", "holds for none of the 1 records"),
        ("@pd.read_csv('x')", "is not a condition on the records' columns"),
    ],
)
def test_a_bad_where_is_named(where: str, message: str) -> None:
    with pytest.raises(ValueError, match="where=") as error:
        select(frame(make_record()), where)
    assert message in str(error.value)


def hinted(message: str) -> list[str]:
    """The arguments that a refusal proposes, as they are typed into a shell: `where=` and, but for a schema, `by=`."""
    found = re.search("for example with ('.*?')(?:, tell them apart with (.*), or pass|$)", message)
    assert found
    return [argument for argument in found.groups() if argument]


SETTINGS = {"model.name": "a", "n_eval": 20_000, "seed": 0, "sae_seed": 0}
OPTIONS = ('{"sparsity": 0.1}', '{"sparsity": 0.2}')
MIXED: dict[str, list[Record]] = {  # the last record is the one that the hint leaves out
    "text": [make_record(layer=1), make_record(layer=3), make_record(layer=2, preprocessing="raw")],
    "options": [
        make_record(layer=1, **trained()),
        *(make_record(layer=i, sae="relu", sae_options=OPTIONS[i == 3], **trained()) for i in (1, 2, 3)),
    ],
    "natural beside planted": [make_record(), make_record(layer=2), *planted(), make_record(layer=3, k=2)],
    "planted beside others": [
        *(make_record(), make_record("c", planted_gamma=2.0, k=7)),
        *(*planted(), make_record("b", 2, n_features=512, planted_gamma=4.0, lr=7.0, k=2)),
    ],
    "an option without a column": [
        *(make_record(layer=i, settings=SETTINGS | {"data.tokens_per_item": 8}) for i in (1, 3)),
        make_record(layer=2, settings=SETTINGS),
    ],
    "an option that is not set": [
        *(make_record(layer=i, settings=SETTINGS) for i in (1, 3)),
        make_record(layer=2, settings=SETTINGS | {"model.loader.context": 32}),
    ],
    "a list": [
        *(make_record(layer=i, settings=SETTINGS | {"data.source.corpora": ["it's", "b"]}) for i in (1, 3)),
        make_record(layer=2, settings=SETTINGS | {"data.source.corpora": ["docstrings"]}),
    ],
    "the speed of b_dec": [
        *(make_record(layer=i, **trained(b_dec_lr=3.0)) for i in (1, 3)),
        *(make_record(layer=4, **trained()), make_record(layer=2, **trained(b_dec_lr=2.0))),
    ],
    "versions": [make_record(schema_version=2), make_record(layer=2)],
}


@pytest.mark.parametrize("records", MIXED.values(), ids=MIXED.keys())
def test_what_a_refusal_proposes_works_in_a_shell(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(ValueError, match="differ in") as error:
        check_mixed(frame(*records), allow=False)
    shown = f"{sys.executable} -c 'import sys; print(*sys.argv[1:], sep=chr(10))' {' '.join(hinted(str(error.value)))}"
    typed = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True).stdout.splitlines()
    config: Any = compose_aggregate(*typed)
    left = select(frame(*records), config.where)
    assert list(left["run_id"]) == [record.run_id for record in records[:-1]]
    assert not check_mixed(left, allow=False)
    if config.by:  # records of two versions are never told apart
        check_mixed(with_settings(frame(*records), config.by), allow=False, by=config.by)


def compose_aggregate(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("aggregate", list(overrides))


def test_records_of_two_versions_are_refused_even_if_mixed_ones_are_allowed() -> None:
    rows = frame(make_record(), make_record(layer=2, schema_version=2))
    with pytest.raises(ValueError, match="schema_version == 2") as error:
        check_mixed(rows, allow=True)
    assert "allow_mixed" not in str(error.value)
    with pytest.raises(ValueError, match="schema_version == 2"):  # natural ones of one version, planted of the other
        check_mixed(frame(make_record(), make_record(schema_version=2, planted_gamma=2.0)), allow=False)


def test_settings_may_differ_between_natural_layers_and_planted_ones_and_between_sources() -> None:
    natural, other = make_record(), make_record("c", planted_gamma=2.0, k=9)
    assert not check_mixed(frame(natural, *planted(), other), allow=False)
    mixed = check_mixed(frame(natural, make_record(layer=2, k=3), *planted()), allow=True)
    assert [mix.setting for mix in mixed] == ["k"]
    with pytest.raises(ValueError, match="The records of c with a planted γ differ in k"):
        check_mixed(frame(natural, other, make_record("c", 2, planted_gamma=2.0)), allow=False)


def test_a_table_without_its_columns_is_left_out_and_the_others_are_made(tmp_path: Path) -> None:
    store(tmp_path / "results", *handful())
    for path in (tmp_path / "results").glob("runs/*/*/*/record.json"):
        row = json.loads(path.read_text())
        gone = (
            "digests",
            "theory_pct_topk",
            "theory_pct_relu",
            "theory_pct_topk_small_gamma",
            "revival",
            "gamma_raw",
            "l0",
        )
        path.write_text(json.dumps({name: value for name, value in row.items() if name not in gone}))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    left_out = "Left out: course (no record has mean_in_bias); theory (no record has theory_pct_topk or "
    assert left_out in done.stdout
    left = {path.stem for path in (tmp_path / "results/tables").iterdir()}
    assert left == {"spearman", "models", "conditions", "coverage", "recovery", "fates", "alignment", "trained"}
    spearman = pd.read_csv(tmp_path / "results/tables/spearman.csv").set_index(["domain", "severity", "death"])
    assert pd.isna(spearman.loc[("all", "γ raw", "TopK"), "ρ"])
    assert spearman.loc[("all", "γ post-LN", "TopK"), "ρ"] == pytest.approx((17 / 17.5) ** 0.5)


def test_a_record_of_no_layer_is_named() -> None:
    with pytest.raises(ValueError, match="records without the column layer"):
        complete(frame(make_record(), make_record()).assign(layer=[1, None]), ())


def test_nothing_that_was_ever_written_stays(tmp_path: Path) -> None:
    names = [f"{prefix}{name}" for prefix in ("", "reference_") for name in (*TABLES, *FIGURES)]
    for name in names:
        for path in (tmp_path / f"tables/{name}.csv", tmp_path / f"figures/{name}.pdf"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
    (tmp_path / "tables/mine.csv").touch()
    (tmp_path / "report.html").touch()
    remove_stale(tmp_path)
    assert not (tmp_path / "report.html").exists()
    left = {path.name for path in tmp_path.glob("*/*")}
    assert left == {"mine.csv"} | {f"{n}.pdf" for n in names if n.removeprefix("reference_") not in FIGURES} | {
        f"{n}.csv" for n in names if n.removeprefix("reference_") not in TABLES
    }


def test_expected_layers_come_from_model_configs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# @package _global_\nmodel:\n  name: a\n  last_layer: 3\n")
    (tmp_path / "af.yaml").write_text("name: af\nfirst_layer: 0\nlast_layer: 0\nloader: {x: '${y}'}\n")
    assert layers_listed_in(tmp_path) == {"a": range(1, 4), "af": range(0, 1)}
    (tmp_path / "wrong.yaml").write_text("domain: vision\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml is not a model config"):
        layers_listed_in(tmp_path)
    with pytest.raises(ValueError, match="holds no model configs"):
        layers_listed_in(tmp_path / "nowhere")


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
    for column, value, message in [
        ("dead_pct_init_topk", 500, "dead_pct_init_topk=500, which must be between 0 and 100"),
        ("gamma", -1, "gamma=-1, which must be 0 or above"),
        ("gamma_raw", "inf", "cells that are not numbers in gamma_raw"),
    ]:
        whole.assign(**{column: value}).to_csv(path, index=False)
        with pytest.raises(ValueError, match=message):
            read_reference(path)
    pd.concat([whole, whole[:1]]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"has layer {whole['layer'][0]} of {whole['model'][0]} twice"):
        read_reference(path)


def test_a_trained_reference_names_its_faults(tmp_path: Path) -> None:
    path = write_trained_reference(tmp_path / "t.csv")
    assert list(read_trained_reference(path))[:5] == ["domain", "model", "layer", "TopK init", "TopK end"]
    whole = pd.read_csv(path)
    whole.drop(columns=["dead_pct_final_auxk", "layer"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"t\.csv lacks the column\(s\) layer, dead_pct_final_auxk$"):
        read_trained_reference(path)
    whole.assign(dead_pct_init_centered="none").to_csv(path, index=False)
    with pytest.raises(ValueError, match="cells that are not numbers in dead_pct_init_centered"):
        read_trained_reference(path)


def test_published_domains() -> None:
    published = pd.DataFrame({"model": ["glm2", "esm"], "domain": ["language", "biology"]})
    own = pd.DataFrame({"model": ["glm2", "evo", "vit"], "domain": ["genomic", "genomic", "vision"]})
    assert list(in_published_domains(own, published)["domain"]) == ["language", "biology", "vision"]
    assert list(in_published_domains(own, published[:1])["domain"]) == ["language", "genomic", "vision"]
