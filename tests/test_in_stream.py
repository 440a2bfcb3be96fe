"""Measuring without a store gives what measuring with one gives, for all layers and variants at once."""

from pathlib import Path

import pytest
import torch

from sae_outliers.activations.split import DOC_START, SPECIAL
from sae_outliers.config import RunConfig, expand
from sae_outliers.results.record import read_records
from sae_outliers.runs.execute import run
from sae_outliers.runs.streaming import measure_in_stream, up_to
from tests.conftest import Run, composed

SIZE = ["train=none", "n_eval=600", "sae.n_features=256", "sae.k=8", "tracker=none"]
VARIANTS = 'variants=["", "centering=on", "centering=whiten", "special_tokens=false init.b_dec=mean"]'
FIGURES = ["gamma", "gamma_raw", "gamma_with_special", "effective_rank", "gamma_sae_input", "dead_pct_init_topk",
           "dead_pct_init_relu", "alignment_dead_init", "d_model", "run_id", "n_eval"]  # fmt: skip


def run_with(*overrides: str) -> None:
    cfg: RunConfig = composed(*overrides)
    run(cfg, expand(cfg, lambda variant: composed(*overrides, *variant)))


@pytest.mark.weights
def test_without_a_store_the_records_are_those_with_one_and_nothing_else_is_left_on_the_disk(tmp_path: Path) -> None:
    common = ["model=offline/minilm", "layer=[2,6]", VARIANTS, *SIZE]
    run_with(*common, f"results_dir={tmp_path / 'stored'}")
    run_with(*common, f"results_dir={tmp_path / 'streamed'}", "store=false")
    stored, streamed = (read_records(tmp_path / name) for name in ("stored", "streamed"))
    assert len(stored) == len(streamed) == 8
    keys = ["layer", "centering", "init_b_dec"]
    stored, streamed = (frame.sort_values(keys, ignore_index=True) for frame in (stored, streamed))
    for column in FIGURES:
        if stored[column].dtype.kind == "f":
            torch.testing.assert_close(
                torch.tensor(streamed[column]), torch.tensor(stored[column]), rtol=1e-6, atol=1e-5, equal_nan=True
            )
        else:
            assert streamed[column].tolist() == stored[column].tolist()
    assert not (tmp_path / "streamed" / "activations").exists()


def test_data_that_end_too_early_are_named(tmp_path: Path) -> None:
    cfg = composed("model=synthetic/sparse", "store=false", f"results_dir={tmp_path}", *SIZE)
    cfg.data.source = {"_target_": "tests.test_in_stream.two_numbers"}
    with pytest.raises(ValueError, match="data=numbers has only 512 tokens for synthetic, but n_eval asks for 600"):
        measure_in_stream([cfg], [1])


def two_numbers() -> object:
    return lambda seed: iter([1, 2])


def test_the_rows_that_hold_so_many_tokens() -> None:
    flags = torch.tensor([SPECIAL | DOC_START, 0, 0, SPECIAL, 0, 0], dtype=torch.uint8)
    assert up_to(flags, 2, special_tokens=False) == (3, 2)
    assert up_to(flags, 3, special_tokens=False) == (5, 3)
    assert up_to(flags, 9, special_tokens=False) == (6, 4)
    assert up_to(flags, 3, special_tokens=True) == (3, 3)
    assert up_to(flags, 0, special_tokens=False) == (0, 0)


@pytest.mark.weights
def test_a_sweep_without_a_store_is_one_job_a_model_and_finished_ones_are_recognised(here: Run, tmp_path: Path) -> None:
    arguments = ["-m", "model=offline/minilm,offline/sapiens", "experiment=init_table", *SIZE]
    done = here("sae_outliers.run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 job(s) done, 0 finished before, 0 failed" in done.stdout
    assert len(read_records(tmp_path)) == (6 + 4) * 4
    assert "0 job(s) to run, 2 finished before" in here("sae_outliers.run", *arguments).stdout
