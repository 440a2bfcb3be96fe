"""What README and docs/ say is so: commands, examples, links, and tables of options and columns."""

import io
import json
import logging
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_method

from sae_outliers.config import ModelConfig, RunConfig, expand, role_of, roles
from sae_outliers.paths import SITES
from sae_outliers.runs.execute import run
from tests.conftest import CONF, ROOT, composed

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
RUN = "python -m sae_outliers.run "


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    """The page and each line of its blocks of shell."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            yield from ((page.name, line) for line in block.splitlines() if line)


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    marks = heading.split()[0]
    _, _, rest = (ROOT / "docs" / page).read_text().partition(f"\n{heading}\n")
    assert rest, heading
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, flags=re.MULTILINE)[0]


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if "|" in line]


def keys_of(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def printed_by(example: str) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        exec(example, {})
    return printed.getvalue()


def run_here(command: str, *others: str) -> None:
    """Run a command of a page in this process, with other overrides after its own."""
    overrides = [*shlex.split(command.removeprefix(RUN)), "tracker=none", *others]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: RunConfig = compose("config", overrides)  # type: ignore[assignment]
        run(cfg, expand(cfg, lambda variant: compose("config", [*overrides, *variant])))  # type: ignore[arg-type, return-value]


# --- commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one_that_there_is_and_takes_what_it_is_given(
    page: str, line: str, request: pytest.FixtureRequest
) -> None:
    match shlex.split(line, comments=True):
        case ["python", "-m", "sae_outliers.run", "-m", *arguments]:
            grid = request.getfixturevalue("combinations")(*arguments)
            assert grid.compose(grid.all[0]).model.name
        case ["python", "-m", "sae_outliers.run", *arguments]:
            check_run(arguments)
        case ["python", "-m", "sae_outliers.aggregate", *arguments]:
            import_module("sae_outliers.aggregate")  # which registers its schema
            with initialize_config_dir(str(CONF), version_base="1.3"):
                assert compose("aggregate", arguments).keys() >= options_of_command("sae_outliers.aggregate")
        case ["python", "-m", "sae_outliers.export", *arguments]:
            check_export(arguments)
        case ["python", "-m", "sae_outliers.diagnose", *arguments]:
            check_diagnose(arguments)
        case ["python", "-m", "sae_outliers.status" | "sae_outliers.wandb_sync" as module, *arguments]:
            assert {argument.partition("=")[0] for argument in arguments} <= options_of_command(module)
        case ["python", script, *_] if script != "-m":
            assert (ROOT / script).is_file()
        case ["make", target]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["python", "-m", "sae_outliers.models"] | ["source", ".venv/bin/activate"]:
            pass
        case _:
            pytest.fail(f"{page}: no test knows how to check {line!r}")


def check_run(arguments: list[str]) -> None:
    cfg = composed(*arguments)
    for variant in cfg.variants:
        composed(*arguments, *shlex.split(variant))


def check_export(arguments: list[str]) -> None:
    named = {argument.partition("=")[0] for argument in arguments}
    assert named | {"type"} == options_of_command("sae_outliers.export")


def check_diagnose(arguments: list[str]) -> None:
    command: Any = import_module("sae_outliers.diagnose")
    request = command.parse(arguments)
    assert request.targets
    assert request.others == []
    if not request.targets[0].endswith(".npy"):  # files that are not here
        assert command.composed(request).model.loader


def options_of_command(module: str) -> set[str]:
    """The fields of the one dataclass of options that a command's module names."""
    declared = vars(import_module(module)).values()
    (options,) = (one for one in declared if is_dataclass(one) and is_options(one))
    return {field.name for field in fields(options)}


def is_options(declared: Any) -> bool:
    return declared.__name__.endswith("Config") or declared.__name__ == "Request"


@pytest.mark.weights
def test_the_first_command_prints_the_line_that_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    run_here(next(line for _, line in commands() if line.startswith(RUN)))
    assert blocks(PAGES[0], "text")[0].strip() in caplog.text


@pytest.mark.slow
@pytest.mark.weights
def test_the_second_command_prints_the_lines_that_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    run_here(next(line for _, line in commands() if "variants=" in line))
    lines = blocks(PAGES[0], "text")[1].splitlines()
    assert len(lines) == 2
    assert [line for line in lines if line not in caplog.text] == []


# --- examples in Python ---------------------------------------------------------------------------------


def example(page: str, begins: str) -> str:
    """The one block of Python of a page that contains these words."""
    (found,) = (block for block in blocks(ROOT / page, "python") if begins in block)
    return found


def test_the_example_with_activations_finds_the_outlier_dimension_and_what_centering_does() -> None:
    printed = printed_by(example("README.md", "CENTERINGS"))
    number = r"(\d+\.\d)"
    found = re.fullmatch(
        rf"γ = {number}\d, first of OutlierDim\(index=100, ratio=\S+\)\n"
        rf"centering=off: {number} % dead by TopK, {number} % by ReLU\n"
        rf"centering=on: 0.0 % dead by TopK, 0.0 % by ReLU\n"
        rf"centering=whiten: 0.0 % dead by TopK, 0.0 % by ReLU\n",
        printed,
    )
    assert found
    assert float(found[2]) > 50


def test_the_example_of_the_closed_forms_finds_the_outlier_dimension_that_it_plants() -> None:
    printed = printed_by(example("docs/training.md", "dead_by_topk_small_gamma"))
    assert re.match(r"γ = 1\.\d\d; about \d\d % dead at initialisation; OutlierDim\(index=100, ", printed)


def test_the_training_example_trains_an_sae() -> None:
    torch.manual_seed(0)
    printed = printed_by(example("docs/training.md", "Trainer"))
    found = re.fullmatch(r"unexplained: (\S+); not fired in the last 100,000 tokens: (\S+) %\n", printed)
    assert found
    assert 0 < float(found[1]) < 0.6
    assert 0 <= float(found[2]) < 50


def test_the_example_of_a_diagnosis_centres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = printed_by(example("docs/diagnose.md", "sae_outliers.diagnose"))
    assert printed.startswith("CENTRE. ")
    assert "sae.b_dec.copy_(centering.shift)" in printed
    assert Path("centering.safetensors").is_file()


def test_the_thresholds_of_a_diagnosis_are_documented() -> None:
    from sae_outliers.diagnosis import trained, verdict

    page = section("diagnose.md", "## Verdict")
    assert f"TopK ≤ {verdict.FINE_TOPK_PCT:.0f} % and dead by ReLU ≤ {verdict.FINE_RELU_PCT} %" in page
    assert f"more than {verdict.WHITEN_TOPK_PCT:.0f} % stay dead" in page
    advice = section("diagnose.md", "## A trained SAE")
    assert f"at most {trained.DEAD_PCT:.0f} % of the features are dead" in advice
    assert f"no more than {trained.ALWAYS_ON_L0_PCT:.0f} % of L0" in advice
    assert all(f"| {action} |" in advice for action in trained.Action)


@pytest.mark.weights
def test_what_a_run_leaves_is_documented_and_reads_as_the_examples_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("n_eval=500", "train.n_tokens=1000", "train.batch_size=250", "sae.n_features=256", "sae.k=8")
    trains = next(line for _, line in commands() if line.startswith(RUN) and "train.steps" in line)
    run_here(trains, *small, "train.steps=4", "train.eval_every=2")
    (folder,) = Path("results/runs/minilm/5").iterdir()

    record = json.loads((folder / "record.json").read_text())
    assert set(record) - documented("## record.json") == set()
    assert documented("## record.json") - set(record) <= {"settings"}
    assert documented("## curves.parquet") == set(pd.read_parquet(folder / "curves.parquet"))
    assert documented("## features.parquet") == set(pd.read_parquet(folder / "features.parquet"))
    files = {
        name for row in table_rows((ROOT / "docs/results.md").read_text().split("## ")[0]) for name in keys_of(row[0])
    }
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == files - {
        "checkpoint.safetensors",
        "checkpoint.json",
    }

    assert "minilm" in printed_by(example("README.md", "read_records"))
    assert "dead_pct_topk" in printed_by(example("docs/results.md", "read_records"))
    variables: dict[str, Any] = {}
    exec(example("README.md", "load_sae"), variables)
    assert variables["features"].shape == (1000, 256)
    assert variables["reconstruction"].shape == (1000, 384)
    exports = next(line for _, line in commands() if "sae_outliers.export" in line).replace("<run_id>", folder.name)
    import_module("sae_outliers.export").main(shlex.split(exports)[3:])
    assert Path("minilm_sae/cfg.json").is_file()


def documented(heading: str) -> set[str]:
    """The columns that a section of results.md describes."""
    return {name for row in table_rows(section("results.md", heading)) for name in keys_of(row[0])}


# --- options --------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default_and_what_it_affects() -> None:
    rows = {keys_of(row[0])[0]: row for row in table_rows(section("options.md", "## Every setting")) if "`" in row[0]}
    assert set(roles()) - set(rows) == set()
    options_of_types = {f"{group}.{key}" for group in ("sae", "revival") for key in yaml_options(group)}
    assert options_of_types - set(rows) == set()
    wrong = [key for key, row in rows.items() if (row[2], compared(row[3])) != effect(key)]
    assert wrong == []
    base = composed()
    defaults = {key: default(key) for key, row in rows.items() if row[1] not in ("-", "by type")}
    assert {key: rows[key][1] for key in defaults if yaml.safe_load(rows[key][1]) != defaults[key]} == {}
    assert base.layer == "middle"


def effect(key: str) -> tuple[str, set[str]]:
    role = role_of(key)
    words = {"axis": role.axis, "shared": role.shared, "sweep": role.sweep_only, f"within {role.within}": role.within}
    return role.affects, {word for word, holds in words.items() if holds}


def compared(cell: str) -> set[str]:
    return {word.strip() for word in cell.split(",") if word.strip()}


def default(key: str) -> Any:
    """Of the schema, whatever the yamls say."""
    node: Any = RunConfig
    for part in key.split("."):
        field = next(one for one in fields(node) if one.name == part)
        node = field.default_factory if callable(field.default_factory) else field.default
    return node() if node in (dict, list) or callable(node) else node


def yaml_options(group: str) -> set[str]:
    found = {key for path in (CONF / group).glob("*.yaml") for key in yaml.safe_load(path.read_text())}
    return found - {"name", "_target_", "defaults"}


def test_the_options_of_aggregate_are_documented() -> None:
    rows = table_rows(section("results.md", "## Tables and figures"))
    named = {key for row in rows for key in keys_of(row[0])}
    assert named == options_of_command("sae_outliers.aggregate")


# --- yaml, links, names ---------------------------------------------------------------------------------


def test_the_model_config_example_fits_the_schema_and_the_loader() -> None:
    (block,) = (block for block in blocks(ROOT / "docs/models.md", "yaml") if "model:" in block)
    model = yaml.safe_load(block)["model"]
    assert model.keys() <= {field.name for field in fields(ModelConfig)}
    loader = get_method(model["loader"].pop("_target_"))
    assert model["loader"].keys() <= loader.__annotations__.keys()


def test_the_example_of_a_sites_profile_has_keys_that_the_default_explains() -> None:
    (profile,) = blocks(ROOT / "docs/cluster.md", "yaml")
    assert yaml.safe_load(profile).keys() <= yaml.safe_load((SITES / "default.yaml").read_text()).keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = [link for link in links if not link.startswith("https://") and not leads_somewhere(page, link)]
    assert broken == []


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page if not name else (page.parent / name)
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_links_every_page_and_is_short() -> None:
    assert {page.name for page in PAGES[1:]} == set(re.findall(r"\]\(docs/(\w+\.md)\)", README))
    assert len(README.encode()) <= 8000


def test_every_make_target_path_and_extra_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text() for page in PAGES)
    targets = re.findall(r"(?:`|^|\s# )make ([a-z-]+)", text, flags=re.MULTILINE)
    assert len(targets) > 15
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    named = set(re.findall(r"`((?:conf|sae_outliers|launch|tests|results)/[\w/.-]+)`", text))
    of_the_user = {"conf/model/mine.yaml", "conf/sae/mine.yaml", "conf/local/default.yaml", "conf/hydra/launcher/"}
    made = {path for path in named if path.startswith("results/")}
    assert [path for path in named - of_the_user - made if not (ROOT / path).exists()] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (sentence,) = re.findall(r"extras: (.*?)\.", README, flags=re.DOTALL)
    assert set(keys_of(sentence)) == set(extras)


def test_every_model_and_data_set_is_named() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for group in ("model", "data", "sae", "revival", "centering", "init", "experiment"):
        names = [path.relative_to(CONF / group).with_suffix("") for path in (CONF / group).rglob("*.yaml")]
        assert [str(name) for name in names if f"`{name}`" not in text and f"`{name}`:" not in text] == []
