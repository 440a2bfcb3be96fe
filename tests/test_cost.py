"""Estimates of memory against what torch and NumPy are seen to take."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sae_outliers.config import options_of, sae_options
from sae_outliers.sae import kernels
from sae_outliers.sae.base import sae_type
from sae_outliers.stats.moments import moments
from sae_outliers.stats.transforms import CENTERINGS
from sae_outliers.sweeps import cost as costs
from sae_outliers.training.revival import revival_type
from sae_outliers.training.trainer import Trainer
from tests.conftest import composed

SMALL_STEP = ("model=synthetic/sparse", "layer=1", "model.d_model=64", "sae.n_features=4096", "sae.k=32")


def peak_bytes(case: Callable[[], None]) -> int:
    """What torch allocates beside what there was before, at its highest."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        case()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "alike"), [
    (["sae=topk"], 2.0), (["sae=batchtopk"], 2.0), (["sae=groupmax"], 2.5), (["sae=matryoshka"], 2.0),
    (["sae=relu"], 1.3), (["sae=jumprelu"], 1.3), (["sae=gated"], 1.3),
    (["sae=topk", "revival=auxk"], 2.0), (["sae=topk", "revival=ghost_grads"], 2.0),
    (["sae=jumprelu", "revival=preact_loss"], 1.5),
])  # fmt: skip
def test_the_memory_of_training_is_estimated_above_what_a_step_takes_at_its_peak_and_near_it(
    overrides: list[str], alike: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in kernels.CHUNK_SIZE:  # measured on a CPU, and small beside a step
        monkeypatch.setitem(kernels.CHUNK_SIZE, device, 1 << 22)
    batch_size = 2048
    cfg = composed(
        *SMALL_STEP, *overrides, "train=short", f"train.batch_size={batch_size}", f"train.dead_window={batch_size}"
    )
    sae = sae_type(cfg.sae)(64, scale=8.0, **sae_options(cfg, sae_type(cfg.sae)))
    revival = revival_type(cfg.revival)
    trainer = Trainer(sae, cfg.train, revival(**options_of(cfg.revival, revival)))
    with torch.no_grad():
        sae.b_enc[1000:] = -1e3  # dead, so that a revival has most of the work that it can have
    x = torch.randn(batch_size, 64)
    for _ in range(2):
        trainer.train_step(x)
    trainer.optimizer.zero_grad()
    sae.W_enc.grad = None
    held = sum(parameter.nbytes for parameter in sae.parameters()) * 3  # with Adam's two moments
    measured = held + peak_bytes(lambda: trainer.train_step(x))
    estimated = 1e9 * (costs.run_cost(cfg).gpu_gb - costs.CONTEXT_GB)
    assert measured < estimated < alike * measured


def test_dense_steps_take_memory_in_proportion_to_the_batch_and_saes_trained_together_add_up() -> None:
    def gpu_gb(*overrides: str) -> float:
        cfg = composed("model=hf", "name=x", "model.d_model=4096", "sae.n_features=65536", "train=short", *overrides)
        return costs.run_cost(cfg).gpu_gb

    more = gpu_gb("sae=relu", "train.batch_size=32768") - gpu_gb("sae=relu", "train.batch_size=1024")
    assert more > 3 * 4 * 31744 * 65536 / 1e9
    assert gpu_gb("sae=topk", "train.batch_size=32768") < gpu_gb("sae=topk", "train.batch_size=1024") + 15
    cfg = composed(*SMALL_STEP, "sae=topk", "train=short", "sae.n_features=2000000")
    alone, together = costs.joint_cost([cfg]), costs.joint_cost([cfg] * 4)
    assert together.operations == pytest.approx(4 * alone.operations)
    assert together.gpu_gb - alone.gpu_gb == pytest.approx(3 * 4 * 8 * 64 * 2e6 / 1e9)
    assert costs.run_cost(cfg) == alone


def test_what_each_layer_holds_in_the_stream_is_counted_for_every_centering() -> None:
    d = 96
    scatter = moments([torch.randn(300, d)], covariance=True)
    held, estimated = [scatter.scatter], costs.COVARIANCE * d**2
    for name, centering in CENTERINGS.items():
        affine = centering(scatter)
        matrices = (affine.linear, affine.inverse, scatter.mapped(affine.shift, affine.linear).scatter)
        held += [matrix for matrix in matrices if matrix is not None]
        estimated += costs.mapped_matrices(composed("model=gpt2", f"centering={name}")) * d**2
        assert sum({matrix.data_ptr(): matrix.nbytes for matrix in held}.values()) == estimated, name
