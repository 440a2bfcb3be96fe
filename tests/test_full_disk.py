"""A disk that takes no more, by a limit on the size of files: one sentence, nothing half-written, and a way on."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from sae_outliers import aggregate
from sae_outliers.config import RunConfig
from sae_outliers.runs.execute import run
from sae_outliers.utils.boundary import one_sentence
from tests.conftest import composed
from tests.test_aggregate import handful, store
from tests.test_tables import make_record

SMALL = ["model=synthetic/sparse", "layer=1", "n_eval=1000", "sae.n_features=512", "sae.k=8", "tracker=none",
         "train.steps=4", "train.n_tokens=2048", "train.batch_size=256", "train.checkpoint_every=2"]  # fmt: skip


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def below(folder: Path) -> dict[Path, bytes]:
    """The files of a folder by their paths in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("size", "first", "others"), [
    (1 << 20, [], []),  # too small for the activations
    (1 << 20, ["task=extract"], []),  # for a checkpoint
    (1 << 19, ["task=extract"], ["train.checkpoint_every=100"]),  # for the SAE
    (8 << 10, ["task=extract"], ["train.steps=0"]),  # for the fates
])  # fmt: skip
def test_a_run_ends_in_a_sentence_and_goes_on_once_there_is_room(
    size: int, first: list[str], others: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def started(name: str, *overrides: str) -> None:
        cfg: RunConfig = composed(*SMALL, *others, *overrides, f"results_dir={tmp_path / name}")
        run(cfg, [cfg])

    if first:
        started("full", *first)
    with pytest.raises(SystemExit) as end, one_sentence(), no_file_above(size):
        started("full")
    assert end.value.code == 1
    assert "the disk is full: make room, then repeat the command" in caplog.messages[-1]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.name == "record.json"]
    started("full")
    started("empty")
    full, empty = (below(tmp_path / name / "runs") for name in ("full", "empty"))
    assert full.keys() == empty.keys()
    assert all(full[name] == empty[name] for name in full if name.suffix == ".parquet")
    for name in (name for name in full if name.suffix == ".safetensors"):  # whose metadata have no order
        weights, expected = load(full[name]), load(empty[name])
        assert all(torch.equal(weights[key], expected[key]) for key in weights.keys() | expected.keys())


def test_tables_of_before_stay_where_new_ones_have_no_room(tmp_path: Path) -> None:
    store(tmp_path, *handful())
    aggregate.main.__wrapped__(aggregate.AggregateConfig(results_dir=str(tmp_path)))
    before = below(tmp_path)
    store(tmp_path, make_record("c", 1))
    refusal = r"tables cannot be written to .* make room or name another folder by into="
    with pytest.raises(SystemExit, match=refusal), no_file_above(3000):
        aggregate.main.__wrapped__(aggregate.AggregateConfig(results_dir=str(tmp_path)))
    now = below(tmp_path)
    assert {path: now.get(path) for path in before} == before
    assert {path.name for path in now.keys() - before.keys()} == {"record.json"}
