"""Whatever a command raises ends as one sentence: what is wrong, where, what to do."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sae_outliers.utils.boundary import named, one_sentence, sentence_of
from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


def os_error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(("error", "sentence"), [
    (ValueError("a is wrong:\n  use b"), "a is wrong: use b"),
    (os_error(errno.ENOSPC, "r/x"), "r/x: the disk is full: make room, then repeat the command"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "the disk is full"),
    (os_error(errno.EROFS, "r"), "r: Read-only file system: is it yours, and is results_dir= a folder"),
    (os_error(errno.ENOTDIR, "r/runs"), "r/runs: Not a directory: a file stands where a folder should be"),
    (os_error(errno.ENOENT, "x.npy"), "No such file or directory: 'x.npy'"),
    (MemoryError(), "out of memory (on the CPU): lower data.batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "lower data.batch_size, train.batch_size"),
    (KeyError("weight"), "KeyError: 'weight' (HYDRA_FULL_ERROR=1 shows where)"),
    (AssertionError(), "AssertionError: no more is known (HYDRA_FULL_ERROR=1 shows where)"),
])  # fmt: skip
def test_an_error_is_told_in_one_line(error: Exception, sentence: str) -> None:
    told = sentence_of(error)
    assert sentence in told
    assert "\n" not in told


def test_a_command_ends_with_the_sentence_and_not_with_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, one_sentence():
        raise KeyError("weight")
    assert exit_.value.code == 1
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_the_traceback_is_there_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(KeyError), one_sentence():
        raise KeyError("weight")


def test_what_a_library_raises_without_words_is_named() -> None:
    with pytest.raises(ValueError, match="m cannot be loaded: KeyError: 'a'"), named("m cannot be loaded"):
        raise KeyError("a")
    with pytest.raises(FileNotFoundError, match="no b"), named("m cannot be loaded"):
        raise FileNotFoundError("no b")


@pytest.mark.parametrize(("arguments", "sentence"), [
    pytest.param(("-m", "model=hf"), "this model needs to be told which: add name=, or path= for model=dump",
                 marks=pytest.mark.slow),
    (("hydra.run.dir={}/a_file/hydra",), "a file stands where a folder should be"),
    pytest.param(("-m", "layer=[]"), "layer=[] selects no layer: use all, middle or numbers from 1 to 30",
                 marks=pytest.mark.slow),
    pytest.param(("train.steps=abc",), "Value 'abc' of type 'str' could not be converted to Integer",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_a_command_that_cannot_work_says_so(command: Run, arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    done = command("sae_outliers.run", *(one.format(tmp_path) for one in arguments), "train=none", "tracker=none")
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_a_single_run_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sae_outliers.run", "model=synthetic/sparse", "layer=1", "train.steps=1000000",
               "tracker=none", f"results_dir={tmp_path}"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/*/*/*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "interrupted: what is finished is kept, and the same command goes on from there" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["diagnose", "status", "export", "models", "wandb_sync"])
def test_help_shows_how_a_command_is_called(here: Run, command: str) -> None:
    for flag in ("-h", "--help"):
        done = here(f"sae_outliers.{command}", flag)
        assert done.returncode == 0
        assert done.stdout.startswith(f"python -m sae_outliers.{command}")
