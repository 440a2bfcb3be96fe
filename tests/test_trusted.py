"""What a colleague's manifest may have run again as you, and what it may not."""

import pytest

from sae_outliers.status import visible
from sae_outliers.sweeps.trusted import check_command


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


def test_remote_code_runs_where_this_command_trusts_it() -> None:
    check_command(["model=hf", "trust_remote_code=true"], trust_remote_code=True)


def test_a_terminal_is_told_nothing() -> None:
    assert visible("a\x1b]0;x\x07\r\n\u202eγ") == "a\\x1b]0;x\\x07\\r\n\\u202eγ"
