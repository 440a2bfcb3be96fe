"""A stack of small SAEs against each of them trained alone, which is its readable twin."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_outliers.config import TrainConfig
from sae_outliers.results.curves import MetricsFile
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.training import stack as stack_module
from sae_outliers.training import trainer as trainer_module
from sae_outliers.training.loop import TrainingRun, train
from sae_outliers.training.revival import AuxK, GhostGrads, Resample, Revival
from sae_outliers.training.stack import Stack, choose_positive, stacks
from sae_outliers.training.trainer import MOMENTS, Trainer
from tests.test_train import Calls

D, N, K, BATCH = 16, 128, 4, 64
CFG = TrainConfig(
    steps=200, batch_size=BATCH, n_tokens=0, lr=1e-3, warmup_steps=10, decay_from=0.8, eval_every=50,
    checkpoint_every=30, dead_window=10 * BATCH,
)  # fmt: skip


def batches(start: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Sparse sums of 40 directions with a mean: γ is about 2, so that features are dead."""
    directions = torch.randn(40, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for step in range(start, 10**6):
        code = torch.rand(BATCH, 40, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        yield (((code < 0.1) * code * 10) @ directions / D**0.5 + 1.0).to(dtype)


Make = Callable[[], Trainer]


def trainer(
    seed: int, cfg: TrainConfig = CFG, revival: Revival | None = None, dtype: torch.dtype = torch.float64
) -> Trainer:
    return Trainer(TopK(D, N, k=K, scale=2.0 + seed, seed=seed).to(dtype), cfg, revival)


# members that differ in all that members may differ in
MEMBERS: list[Make] = [
    lambda: trainer(0),
    lambda: trainer(1, replace(CFG, lr=3e-3)),
    lambda: trainer(2, replace(CFG, b_dec_lr=0.1)),
    lambda: trainer(3, replace(CFG, freeze_b_dec=True)),
    lambda: trainer(4, replace(CFG, warmup_steps=1, decay_from=0.5, dead_window=5 * BATCH), AuxK()),
    lambda: trainer(5, CFG, AuxK(alpha=0.5, k_aux=3)),
    lambda: trainer(6, replace(CFG, freeze_b_dec=True), AuxK()),
]


def inputs(member: int, x: Tensor) -> Tensor:
    """Each member has a centering of its own."""
    return x - 0.3 * member


def alone(makes: Sequence[Make], steps: int) -> list[Trainer]:
    trainers = [make() for make in makes]
    for x in islice(batches(0, trainers[0].sae.W_dec.dtype), steps):
        for m, one in enumerate(trainers):
            one.train_step(inputs(m, x))
    return trainers


def stacked(makes: Sequence[Make], steps: int) -> list[Trainer]:
    trainers = [make() for make in makes]
    (order,) = stacks(trainers)
    together = Stack([trainers[i] for i in order])
    for x in islice(batches(0, trainers[0].sae.W_dec.dtype), steps):
        together.train_step([inputs(i, x) for i in order])
    return trainers


def assert_alike(one: Trainer, other: Trainer, tolerance: float) -> None:
    assert one.step == other.step
    assert torch.equal(one.last_fired, other.last_fired)
    assert one.last_loss() == pytest.approx(other.last_loss(), rel=tolerance)
    for name, expected in one.optimised.items():
        given = other.optimised[name]
        assert (given - expected).norm() <= tolerance * expected.norm(), name
        for moment, value in one.optimizer.state[expected].items():
            torch.testing.assert_close(other.optimizer.state[given][moment], value, rtol=1e-6, atol=1e-12)


def test_every_member_gets_the_weights_moments_and_counters_of_training_alone() -> None:
    expected = alone(MEMBERS, 200)
    assert len(expected[4].dead()) > 0, "AuxK has to have something to do"
    for one, other in zip(expected, stacked(MEMBERS, 200), strict=True):
        assert_alike(one, other, 1e-10)
    assert not expected[3].sae.b_dec.any()


def test_in_float32_the_weights_after_200_steps_are_those_of_training_alone_to_1e_5() -> None:
    makes: list[Make] = [lambda seed=seed: trainer(seed, dtype=torch.float32) for seed in range(5)]  # type: ignore[misc]
    for one, other in zip(alone(makes, 200), stacked(makes, 200), strict=True):
        for name, expected in one.optimised.items():
            assert (other.optimised[name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("k", [3, 40], ids=["some are ranked", "all that are positive"])
def test_auxk_in_a_stack_chooses_the_k_largest_positive_pre_activations_of_dead_features(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(2, 20, N, generator=generator)
    dead = torch.rand(2, N, generator=generator) < 0.3
    expected = torch.zeros(40, 2 * N)  # a row per token of each member; member m's features count from m * N on
    for m in range(2):
        for t in range(20):
            found = sorted(((pre[m, t, j].item(), j) for j in dead[m].nonzero()[:, 0].tolist()), reverse=True)
            for value, j in found[:k]:
                expected[20 * m + t, m * N + j] = max(value, 0)
    code = choose_positive(pre.clone(), dead, k)
    assert (code.values > 0).all()
    assert torch.equal(code.dense(2 * N), expected)


@pytest.mark.parametrize("train", [alone, stacked], ids=["alone", "stacked"])
def test_moments_that_shrink_for_want_of_a_gradient_become_zero_and_not_denormal(
    train: Callable[[Sequence[Make], int], list[Trainer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    makes: list[Make] = [lambda seed=seed: trainer(seed, dtype=torch.float32) for seed in range(2)]  # type: ignore[misc]

    def denormal(one: Trainer) -> int:
        moments = [state[name].abs() for state in one.optimizer.state.values() for name in MOMENTS]
        return sum(int(((m > 0) & (m < torch.finfo(torch.float32).tiny)).sum()) for m in moments)

    found = train(makes, 1500)
    assert [denormal(one) for one in found] == [0, 0]
    monkeypatch.setattr(trainer_module, "STEPS_BETWEEN", 10**9)
    for one, other in zip(found, train(makes, 1500), strict=True):
        assert denormal(other) > 0
        for name, expected in other.optimised.items():
            torch.testing.assert_close(one.optimised[name], expected, rtol=0, atol=1e-20)


def test_a_revival_that_changes_weights_after_a_step_changes_those_of_its_member() -> None:
    makes: list[Make] = [lambda: trainer(0, CFG, Resample(every=15, until=30)), lambda: trainer(1)]
    # a step after the first resampling: features that were drawn at the same token are the same, and so are ties later
    for one, other in zip(alone(makes, 16), stacked(makes, 16), strict=True):
        for name, expected in one.optimised.items():
            assert (other.optimised[name] - expected).norm() <= 1e-9 * expected.norm(), name
    assert not torch.equal(alone(makes, 15)[0].sae.W_dec, alone([lambda: trainer(0), makes[1]], 15)[0].sae.W_dec)


def run_of(make: Make, member: int, directory: Path) -> TrainingRun:
    directory.mkdir(parents=True, exist_ok=True)
    one = make()
    return TrainingRun(
        one,
        lambda x: inputs(member, x),
        lambda step: {"norm": one.sae.W_dec.norm().item() + one.sae.b_dec.norm().item()},
        MetricsFile(directory / "metrics.jsonl", lambda point: None),
        directory / "checkpoint.safetensors",
    )


class Interrupted(Exception):
    pass


def trained(folder: Path, stop_at: int | None = None) -> list[TrainingRun]:
    runs = [run_of(make, m, folder / str(m)) for m, make in enumerate(MEMBERS)]

    def stream(start: int) -> Iterator[Tensor]:
        for step, x in enumerate(batches(start), start):
            if step == stop_at:
                raise Interrupted
            yield x

    train(runs, stream, "test")
    return runs


def test_an_interrupted_stack_goes_on_to_bitwise_the_same_weights_and_curves(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", stop_at=77)
    for one, other in zip(whole, trained(tmp_path / "cut"), strict=True):
        assert other.metrics.points() == one.metrics.points()
        for name, tensor in one.trainer.sae.state_dict().items():
            assert torch.equal(other.trainer.sae.state_dict()[name], tensor), name


def test_a_members_checkpoint_is_that_of_a_run_alone(tmp_path: Path) -> None:
    for m, one in enumerate(stacked(MEMBERS, 20)):
        one.save(tmp_path / f"{m}.safetensors")
        resumed, expected = MEMBERS[m](), alone(MEMBERS, 20)[m]
        resumed.load(tmp_path / f"{m}.safetensors")
        x = inputs(m, next(batches(20)))
        for trainer in (resumed, expected):
            trainer.train_step(x)
        assert_alike(expected, resumed, 1e-10)


def test_only_what_can_share_a_computation_stands_in_a_stack() -> None:
    others = [
        Trainer(TopK(D, N, k=5), CFG),
        Trainer(TopK(D, 2 * N, k=K), CFG),
        Trainer(TopK(D, N, k=K, precision="bf16_select"), CFG),
        Trainer(TopK(D, N, k=K), replace(CFG, batch_size=32)),
        Trainer(TopK(D, N, k=K), CFG, GhostGrads()),
        Trainer(ReLU(D, N, k=K), CFG),
        Trainer(ReLU(D, N, k=K), CFG),
    ]
    found = stacks([trainer(0), *others, trainer(1), trainer(2)])
    assert sorted(map(sorted, found)) == [[0, 8, 9], *([i] for i in range(1, 8))]


def test_members_at_another_step_and_more_than_fit_into_a_cache_stand_in_another_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainers = [trainer(seed) for seed in range(7)]
    trainers[3].step = 1
    monkeypatch.setitem(stack_module.LARGEST, "cpu", 2 * BATCH * N)
    assert sorted(map(sorted, stacks(trainers))) == [[0, 1], [2, 4], [3], [5, 6]]
    monkeypatch.setitem(stack_module.LARGEST, "cpu", BATCH * N - 1)
    assert len(stacks(trainers)) == 7


def test_a_step_calls_as_many_operations_for_twenty_members_as_for_two() -> None:
    counts = []
    for members in (2, 20):
        together = Stack([trainer(seed) for seed in range(members)])
        xs = [next(batches(0))] * members
        together.train_step(xs)
        with Calls() as calls:
            together.train_step(xs)
        counts.append({name: n for name, n in calls.counts.items() if name not in ("select", "detach", "alias")})
    assert counts[0] == counts[1]
    assert counts[0]["bmm"] == 2  # the encoder's, and that of b_dec's gradient
    assert counts[0]["waits"] == 0
