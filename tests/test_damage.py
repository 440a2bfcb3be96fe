"""Every file of a finished and of an unfinished run, with a byte flipped or cut: named, or made again, never used."""

import json
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_outliers.analysis.inputs import complete
from sae_outliers.analysis.make import measured_columns
from sae_outliers.analysis.trained import read_trained
from sae_outliers.config import TrainConfig
from sae_outliers.results.curves import MetricsFile, Point
from sae_outliers.results.layout import CHECKPOINT, CHECKPOINT_DIGESTS, is_finished
from sae_outliers.results.record import read_records, write_row
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.io import load_sae, save_sae
from sae_outliers.stats.transforms import Affine
from sae_outliers.training.loop import Together, TrainingRun, train
from sae_outliers.training.revival import Revival
from sae_outliers.training.trainer import Trainer
from tests.test_recovery import make_curve, make_features
from tests.test_tables import make_record, trained

ATTACKS = 25  # of each file


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, or cut the end off."""
    where = chance.randrange(len(content))
    if chance.random() < 0.3:
        return content[:where]
    return content[:where] + bytes([content[where] ^ 1 << chance.randrange(8)]) + content[where + 1 :]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "m" / "1" / "abc"
    directory.mkdir(parents=True)
    make_curve([80, 30, 5]).to_parquet(directory / "curves.parquet")
    make_features([0, 1, 2], [0, 0, 2], [0.5, -0.2, -0.6]).to_parquet(directory / "features.parquet")
    save_sae(directory / "sae.safetensors", TopK(8, 16, k=2), Affine(torch.zeros(8)), {})
    write_row(directory, vars(make_record("m", 1, run_id="abc", **trained())))
    return directory


def read_all(directory: Path) -> None:
    """What aggregate and export read of a run."""
    read_trained(complete(read_records(directory.parents[3]), measured_columns()))
    load_sae(directory / "sae.safetensors")


@pytest.mark.parametrize("name", ["record.json", "features.parquet", "curves.parquet", "sae.safetensors"])
def test_a_finished_run_is_never_read_with_a_damaged_file(name: str, finished: Path) -> None:
    read_all(finished)
    whole = (finished / name).read_bytes()
    row = json.loads((finished / "record.json").read_bytes())
    chance = random.Random(0)
    for _ in range(ATTACKS):
        (finished / name).write_bytes(damage(whole, chance))
        if name == "record.json":
            figures = json.loads((finished / name).read_bytes()) if is_finished(finished) else row
            assert {**figures, "digests": 0} == {**row, "digests": 0}  # of the digests a name may be what was hit
        else:
            with pytest.raises(ValueError, match=f"{name} is damaged .* and run its job again"):
                read_all(finished)


def training(directory: Path, steps: int = 6) -> TrainingRun:
    cfg = TrainConfig(steps=steps, n_tokens=64, batch_size=16, eval_every=1, checkpoint_every=2, warmup_steps=0)
    trainer = Trainer(TopK(8, 16, k=2), cfg, Revival())

    def measure(step: int) -> Point:
        return {"norm": trainer.sae.W_enc.norm().item()}

    metrics = MetricsFile(directory / "metrics.jsonl", lambda _: None)
    return TrainingRun(trainer, lambda x: x, measure, metrics, directory / CHECKPOINT)


def trained_to_the_end(run: TrainingRun) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    batches = torch.randn(6, 16, 8, generator=torch.Generator().manual_seed(1))
    train([run], lambda start: iter(batches[start:]), "test")
    return run.trainer.sae.state_dict(), run.metrics.curves()


def killed_after(directory: Path, steps: int) -> None:
    batches = torch.randn(6, 16, 8, generator=torch.Generator().manual_seed(1))
    run = training(directory)
    run.begin()
    for step, x in enumerate(batches[:steps]):
        Together([run]).train_step(step, x)


@pytest.mark.parametrize("name", [CHECKPOINT, CHECKPOINT_DIGESTS, "metrics.jsonl"])
def test_training_ends_as_if_nothing_had_been_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    weights, curves = trained_to_the_end(training(tmp_path / "whole"))
    (tmp_path / "killed").mkdir()
    killed_after(tmp_path / "killed", 5)
    chance = random.Random(0)
    for i in range(ATTACKS):
        directory = tmp_path / str(i)
        shutil.copytree(tmp_path / "killed", directory)
        (directory / name).write_bytes(damage((directory / name).read_bytes(), chance))
        again, curves_again = trained_to_the_end(training(directory))
        assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())
        pd.testing.assert_frame_equal(curves, curves_again)


def test_a_kill_between_the_digest_and_the_checkpoint_resumes_from_the_one_before(tmp_path: Path) -> None:
    killed_after(tmp_path, 3)
    before = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / ".checkpoint.safetensors.0123.tmp").write_bytes(before[:100])
    run = training(tmp_path)
    run.begin()
    assert run.trainer.step == 2
    assert not list(tmp_path.glob(".*.tmp"))
    run.trainer.train_step(torch.ones(16, 8))
    run.trainer.train_step(torch.ones(16, 8))
    run.save()
    (tmp_path / CHECKPOINT).write_bytes(before)
    run = training(tmp_path)
    run.begin()
    assert run.trainer.step == 2
