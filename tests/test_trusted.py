"""What a colleague's manifest may have run again as you, and what it may not."""

import shutil
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_outliers import status
from sae_outliers.config import expand
from sae_outliers.sae.base import sae_type
from sae_outliers.sweeps.trusted import check_command
from sae_outliers.utils.boundary import visible
from sae_outliers.utils.instantiate import ONLY_NAMED, instantiate
from tests.conftest import composed

TOUCH = "{_target_:subprocess.check_call,args:[touch,ran]}"
OF_A_HUB = "sae_outliers.models.transformers.remote_code.load_remote_code_model"  # ours, but none that a config names


@pytest.mark.parametrize(
    "command",
    [
        "model=offline/minilm,offline/sapiens experiment=init",
        "model=hf name=../models/mine layer=all train=none hydra/launcher=slurm hydra.launcher.n_workers=2",
        "model=glob(*) sae.k=16,32 sae.sparsity=0.1 +model.loader.context=128 pack=4 site=leonardo",
        "model.loader._target_=sae_outliers.models.transformers.auto.load",
    ],
)
def test_settings_are_let_through(command: str) -> None:
    check_command(command.split(), trust_remote_code=False)


@pytest.mark.parametrize(
    "override",
    [
        "+model.loader._target_=torch.load",
        "model.loader._target_=sae_outliers.data.arrays.np.load",
        "+data.source={_target_:pandas.read_pickle,path:x}",
        "data.source._target_=choice(builtins.eval,os.system)",
        "sae._target_=theirs.Sae",
        "sae={name:topk,_target_:theirs.Sae}",
        "trust_remote_code=true",
        "+model.loader.trust_remote_code=true",
        "variants=['trust_remote_code=true']",
        "variants=['sae._target_=theirs.Sae sae.k=2']",
        f"variants=[\"++model.loader='{TOUCH}'\"]",  # a text to Hydra, until the shell's quotes are gone
        f'variants=["sae.k=2", "++data.source=\\"{TOUCH}\\""]',
        f"variants=[[model.loader={TOUCH}]]",
        "variants={a:'model.loader._target_=os.system'}",
        "variants=choice(['sae.k=2'],['sae._target_=theirs.Sae'])",
        "variants=[\"variants=['sae._target_=theirs.Sae']\"]",
        'variants=["sae.k=2 \'"]',
        f"++model.loader={TOUCH}",
        f"+model.loader.tokenizer={TOUCH}",
        f"model={{loader:{TOUCH}}}",
        f"model.last_layer={TOUCH}",
        f"layer={TOUCH}",
        f"data.source.files=[{{a:{TOUCH}}}]",
        f"data.source={TOUCH},{TOUCH}",
        "data.source.x._target_=os.system",
        "data.source.x={a._target_:os.system}",
        "data.source._target_={a:os.system}",
        "+data.source._args_=[rm]",
        "+data.source.x={_partial_:true}",
        f"model.loader._target_={OF_A_HUB}",
        "+sae@hydra.launcher=topk",
        "hydra/job_logging=theirs",
        f"hydra.launcher={TOUCH}",
        f"+hydra.callbacks.theirs={TOUCH}",
        f"hydra.sweeper.params={TOUCH}",
        "hydra.searchpath=[file:///theirs]",
        "hydra/launcher=../../theirs",
        "hydra.launcher._target_=os.system",
        "model=../../theirs",
        "name=${oc.env:HF_TOKEN}",
        "site=../../theirs",
        "+no.such.option=1",
        "--config-dir=/theirs",
    ],
)
def test_what_would_run_their_code_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"a manifest asks for|is no command of a sweep"):
        check_command(["model=offline/minilm", override], trust_remote_code=False)


def test_quotes_that_a_variant_loses_on_its_way_are_seen_through() -> None:
    """What the check is about: these words are a text until they are split, and then a function that is called."""
    cfg = composed(f"variants=[\"++model.loader='{TOUCH}'\"]")
    (seen,) = expand(cfg, lambda words: composed("model=synthetic/sparse", *words))
    assert seen.model.loader._target_ == "subprocess.check_call"


@pytest.fixture
def as_a_manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process as retry starts it, in a folder with configs of the user's own."""
    (tmp_path / "conf/sae").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ONLY_NAMED, "1")
    return tmp_path


def test_what_was_not_typed_names_only_what_configs_name(as_a_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for every way on which a config may have come by its `_target_`."""
    hostile = {"_target_": "subprocess.check_call", "args": ["touch", "ran"]}
    inside = OmegaConf.create({"_target_": "sae_outliers.data.dna.HumanDna", "x": [{"y": hostile}]})
    for node in (hostile, inside, {"_target_": OF_A_HUB}):
        with pytest.raises(ValueError, match="stands in none of your configs, and this command is a manifest's"):
            instantiate(node)
    assert not (as_a_manifest / "ran").exists()
    assert instantiate(composed("model=synthetic/sparse").model.loader).blocks
    assert instantiate({"_target_": "sae_outliers.data.stored.StoredArrays", "path": "x"})  # by its former name
    monkeypatch.delenv(ONLY_NAMED)
    assert instantiate({"_target_": "shutil.which", "cmd": "sh"}) == shutil.which("sh")


def test_a_class_of_ones_own_is_taken_from_ones_own_yaml(as_a_manifest: Path) -> None:
    path = "sae_outliers.sae.architectures.topk.TopK"
    (as_a_manifest / "conf/sae/mine.yaml").write_text(f"name: topk\n_target_: {path}\n")
    (as_a_manifest / "conf/sae/broken.yaml").write_text("{")
    check_command([f"sae._target_={path}"], trust_remote_code=False)
    assert sae_type(OmegaConf.create({"name": "topk", "_target_": path})).__name__ == "TopK"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shutil\.Sae stands in none of your configs"):
        sae_type(OmegaConf.create({"name": "x", "_target_": "shutil.Sae"}))  # type: ignore[arg-type]


def test_a_command_that_is_run_again_is_told_that_nobody_typed_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        told.append(env[ONLY_NAMED])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(status.subprocess, "run", run)
    assert status._run_again(["model=synthetic/sparse"], tmp_path) == 0
    assert told == ["1"]


def test_remote_code_runs_where_this_command_trusts_it() -> None:
    check_command(["model=hf", "trust_remote_code=true"], trust_remote_code=True)


def test_a_terminal_is_told_nothing() -> None:
    assert visible("a\x1b]0;x\x07\r\n\u202eγ") == "a\\x1b]0;x\\x07\\r\n\\u202eγ"
