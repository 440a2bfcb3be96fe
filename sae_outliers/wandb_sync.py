"""python -m sae_outliers.wandb_sync (make wandb-sync): upload the runs that went to W&B offline.

    python -m sae_outliers.wandb_sync results_dir=results

A run that was interrupted has a folder below <results_dir>/wandb for each time that it began. The last one holds the
whole curve, and is what is uploaded; that of a killed process may be empty, which would make `wandb sync` give up.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.utils.boundary import one_sentence, shows_help
from sae_outliers.utils.files import is_locked

HEADER = 7  # bytes with which W&B's files begin
AT_ONCE = 500  # paths in a command, whose length is limited
SYNCED = ".synced"  # what W&B adds to the name of a file to say so


@dataclass
class SyncConfig:
    results_dir: str = "results"


def main(arguments: Sequence[str]) -> None:
    if shows_help(arguments, __doc__):
        return
    config: Any = OmegaConf.merge(OmegaConf.structured(SyncConfig), OmegaConf.from_cli(list(arguments)))
    files = to_upload(Path(config.results_dir))
    print(f"{len(files)} offline run(s) below {config.results_dir}/wandb to upload", flush=True)
    for start in range(0, len(files), AT_ONCE):
        upload(files[start : start + AT_ONCE], Path(config.results_dir))
    left = [file for file in files if not is_synced(file)]
    if left:
        sys.exit(f"{len(left)} of {len(files)} run(s) were not uploaded, the first of them {left[0]}: see above")


def to_upload(results_dir: Path) -> list[Path]:
    """The newest offline file of each run that is not uploaded, and on which no process works; by run id."""
    files = [file for file in (results_dir / "wandb").glob("offline-run-*/run-*.wandb") if file.stat().st_size > HEADER]
    files.sort(key=lambda file: (file.stem, file.parent.name))  # the folder's name begins with the time
    newest = [list(of_run)[-1] for _, of_run in groupby(files, key=lambda file: file.stem)]
    return [file for file in newest if not is_synced(file) and not _is_under_way(results_dir, file)]


def is_synced(file: Path) -> bool:
    return file.with_name(file.name + SYNCED).exists()


def _is_under_way(results_dir: Path, file: Path) -> bool:
    run_id = file.stem.removeprefix("run-")
    return any(is_locked(lock) for lock in (results_dir / "runs").glob(f"*/*/{run_id}/.lock"))


def upload(files: Sequence[Path], results_dir: Path) -> None:
    """With W&B's own command, which marks what it has uploaded; a compute node's WANDB_MODE=offline is ignored."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    environment["WANDB_DIR"] = str(results_dir)  # where it puts its log; else where it is called from
    command = [sys.executable, "-m", "wandb", "sync", *map(str, files)]
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
