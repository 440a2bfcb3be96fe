import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_outliers.config import TrainConfig
from sae_outliers.results.curves import MetricsFile, Point
from sae_outliers.sae.architectures.batchtopk import BatchTopK
from sae_outliers.sae.architectures.jumprelu import JumpReLU
from sae_outliers.sae.architectures.relu import ReLU
from sae_outliers.sae.architectures.topk import TopK
from sae_outliers.sae.base import SparseAutoencoder
from sae_outliers.training.loop import TrainingRun, train
from sae_outliers.training.revival import AuxK, GhostGrads, PreactLoss, Resample, Revival
from sae_outliers.training.trainer import Trainer
from tests.test_sae import TYPES

CFG = TrainConfig(
    steps=40, batch_size=64, n_tokens=0, lr=1e-2, warmup_steps=10, decay_from=0.5, eval_every=10, checkpoint_every=15,
    dead_window=640,
)  # fmt: skip


def batches(start: int) -> Iterator[torch.Tensor]:
    """Tokens with structure to learn: sparse sums of a few directions, with a mean."""
    directions = torch.randn(12, 16, generator=torch.Generator().manual_seed(9))

    def batch(step: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(step)
        code = torch.rand(CFG.batch_size, 12, generator=rng) * (torch.rand(CFG.batch_size, 12, generator=rng) < 0.2)
        return code @ directions + 0.5

    return (batch(step) for step in iter(range(start, 10**9)))


class Interrupted(Exception):
    pass


STACK = {
    "topk": lambda: (TopK(16, 64, k=4, scale=2.0), AuxK(), 1.0),
    "relu": lambda: (ReLU(16, 64, k=4, scale=2.0, sparsity=0.01), GhostGrads(), 0.5),
    "batchtopk": lambda: (BatchTopK(16, 64, k=4, scale=2.0), Resample(every=12, until=36), 1.0),
    "jumprelu": lambda: (JumpReLU(16, 64, k=4, scale=2.0, sparsity=0.01), PreactLoss(), 0.5),
}


def training_run(name: str, directory: Path) -> TrainingRun:
    """An SAE with its revival, which sees the batches times a number of its own."""
    sae, revival, factor = STACK[name]()
    trainer = Trainer(sae, CFG, revival)

    def measure(step: int) -> Point:
        with torch.no_grad():
            x = factor * next(batches(10**6))
            return {"error": (sae(x) - x).square().mean().item()}

    directory.mkdir(exist_ok=True)
    metrics = MetricsFile(directory / f"{name}.jsonl", lambda point: None)
    return TrainingRun(trainer, lambda x: factor * x, measure, metrics, directory / f"{name}.safetensors")


def trained(names: Iterable[str], directory: Path, stop_at: int | None = None) -> dict[str, TrainingRun]:
    """These SAEs trained side by side, from the checkpoints in `directory`; `stop_at` breaks it off."""
    stack = {name: training_run(name, directory) for name in names}

    def stream(start: int) -> Iterator[torch.Tensor]:
        for step, x in enumerate(batches(start), start):
            if step == stop_at:
                raise Interrupted
            yield x

    train(list(stack.values()), stream, "test")
    return stack


def assert_same(one: TrainingRun, other: TrainingRun) -> None:
    for name, tensor in one.trainer.sae.state_dict().items():
        assert torch.equal(tensor, other.trainer.sae.state_dict()[name]), name
    assert torch.equal(one.trainer.last_fired, other.trainer.last_fired)
    assert one.metrics.points() == other.metrics.points()


def test_saes_trained_side_by_side_get_bitwise_the_weights_and_curves_of_training_alone(tmp_path: Path) -> None:
    together = trained(STACK, tmp_path / "together")
    for name, one in together.items():
        assert_same(one, trained([name], tmp_path / name)[name])


@pytest.mark.parametrize("stop_at", [3, 17, 35])
def test_an_interrupted_stack_ends_with_bitwise_the_same_weights_and_curves(stop_at: int, tmp_path: Path) -> None:
    whole = trained(STACK, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(STACK, tmp_path / "cut", stop_at)
    resumed = trained(STACK, tmp_path / "cut")
    for name, one in whole.items():
        assert_same(one, resumed[name])


def test_runs_killed_between_their_checkpoints_go_on_each_from_its_own(tmp_path: Path) -> None:
    whole = trained(["topk", "relu"], tmp_path / "whole")
    for name, stop_at in (("topk", 35), ("relu", 17)):
        with pytest.raises(Interrupted):
            trained([name], tmp_path / "cut", stop_at)
    for name, one in trained(["topk", "relu"], tmp_path / "cut").items():
        assert_same(one, whole[name])


def test_training_lowers_the_error_and_keeps_decoder_rows_at_unit_norm(tmp_path: Path) -> None:
    one = trained(["topk"], tmp_path)["topk"]
    trainer, curves = one.trainer, one.metrics.curves()
    assert curves.step.tolist() == [0, 10, 20, 30, 40]
    assert curves.tokens.tolist() == [0, 640, 1280, 1920, 2560]
    assert curves.error.iloc[-1] < 0.5 * curves.error.iloc[0]
    torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(64))
    assert curves.loss.isna().tolist() == [True, False, False, False, False]


def test_the_learning_rate_warms_up_holds_and_decays_to_zero() -> None:
    trainer = Trainer(TopK(4, 8, k=2), CFG)

    def rate(step: int) -> float:
        trainer.step = step
        return CFG.lr * trainer.schedule()

    assert rate(0) == pytest.approx(1e-3)
    assert rate(4) == pytest.approx(5e-3)
    assert rate(9) == rate(15) == rate(20) == pytest.approx(1e-2)
    assert rate(30) == pytest.approx(5e-3)
    assert rate(40) == 0


def test_b_dec_moves_by_its_own_learning_rate_on_the_same_schedule() -> None:
    trainer = Trainer(TopK(16, 64, k=4, scale=2.0), replace(CFG, b_dec_lr=3.0))
    trainer.train_step(next(batches(0)))
    share = trainer.schedule()
    moved = trainer.sae.b_dec.detach().abs()  # Adam's first step is the rate in each coordinate, whatever the gradient
    torch.testing.assert_close(moved, torch.full((16,), 3.0 * 0.1), rtol=1e-3, atol=0)
    assert trainer.sae.b_enc.detach().abs().max() <= 1.01e-2 * 0.1
    trainer.train_step(next(batches(1)))
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-2 * share, 3.0 * share])


def test_not_fired_in_the_window_agrees_with_a_loop_over_the_batches() -> None:
    trainer = Trainer(TopK(16, 64, k=4, scale=2.0), CFG)
    fired: list[set[int]] = []
    for step, x in enumerate(islice(batches(0), 25)):
        with torch.no_grad():
            values, indices = trainer.sae.pre_activations(x).topk(4)
        fired.append(set(indices[values > 0].tolist()))
        trainer.train_step(x)
        expected = 64 - len(set().union(*fired[-10:])) if step >= 9 else None  # 640 tokens are 10 batches
        assert trainer.dead_pct_window() == (None if expected is None else pytest.approx(100 * expected / 64))


def test_metrics_drop_what_a_resumed_run_writes_again_and_a_half_written_line(tmp_path: Path) -> None:
    mirrored: list[Point] = []
    metrics = MetricsFile(tmp_path / "metrics.jsonl", mirrored.append)
    for step in (0, 10, 20):
        metrics.write({"step": step, "tokens": step, "x": step / 2, "dead_pct_window": None})
    with metrics.path.open("a") as file:
        file.write('{"step": 30, "tok')
    assert [point["step"] for point in metrics.points()] == [0, 10, 20]
    metrics.drop_from(20)
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [0, 10]
    assert [point["step"] for point in mirrored] == [0, 10, 20, 0, 10]  # once more, for the tracker of the resumed run
    assert metrics.curves().x.tolist() == [0, 5]


WAITING = ("nonzero", "bincount", "_local_scalar_dense", "masked_select", "equal", "_unique2", "is_nonzero")


class Calls(TorchDispatchMode):
    """Counts by name the operators that are called, and those whose result's size a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        self.counts[name] += 1
        self.counts["waits"] += name in WAITING or by_mask or unsized
        return func(*args, **(kwargs or {}))


def calls_of_a_step(sae: SparseAutoencoder, revival: Revival) -> Counter[str]:
    trainer = Trainer(sae, CFG, revival)
    for x in islice(batches(0), 12):  # past the window, so that dead features are looked for
        with Calls() as calls:
            trainer.train_step(x)
    assert trainer.dead_pct_window() is not None
    return calls.counts


@pytest.mark.parametrize("name", TYPES)
def test_a_step_waits_for_a_gpu_only_where_the_sizes_of_what_is_chosen_depend_on_the_data(name: str) -> None:
    calls = calls_of_a_step(TYPES[name](16, 64, k=4, scale=2.0), Revival())
    chosen = {"batchtopk": 1, "matryoshka": 1}  # of the chunk of tokens, those above the floor
    assert calls["waits"] == calls["nonzero"] == chosen.get(name, 0)


def test_a_revival_waits_for_the_dead_features_only_when_it_needs_them() -> None:
    assert calls_of_a_step(TopK(16, 64, k=4, scale=2.0), Resample(every=5))["waits"] == 0
    assert calls_of_a_step(TopK(16, 64, k=4, scale=2.0), AuxK())["nonzero"] == 1


def test_both_weight_gradients_share_one_sort() -> None:
    n_features = (1 << 16) + 1  # so many that torch sorts them, not numpy
    assert calls_of_a_step(TopK(16, n_features, k=4, scale=2.0), Revival())["sort"] == 1


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", ["topk", "relu"])
def test_an_sae_that_is_given_another_type_trains_on_as_one_that_had_it_from_the_start(
    name: str, steps_before: int
) -> None:
    """.double() and .to(device) replace the storage of the weights, of which the trainer holds a view."""
    x = [batch.double() for batch in islice(batches(0), 12)]
    wide = Trainer(TYPES[name](16, 64, k=4, scale=2.0).double(), CFG)
    turned = Trainer(TYPES[name](16, 64, k=4, scale=2.0), CFG)
    for step, batch in enumerate(x):
        if step == steps_before:
            turned.sae.double()
        wide.train_step(batch)
        turned.train_step(batch if step >= steps_before else batch.float())
    for parameter, expected in zip(turned.sae.parameters(), wide.sae.parameters(), strict=True):
        assert parameter.dtype == torch.float64
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-5 if steps_before else 1e-12)
    assert turned.optimised["W_enc"].data_ptr() == turned.sae.W_enc.data_ptr()


def test_a_step_that_does_not_fit_in_memory_names_the_options_to_lower() -> None:
    trainer = Trainer(TopK(16, 64, k=4), CFG)
    with pytest.raises(ValueError, match=r"out of memory: .* a training step of 64 tokens.*: lower train.batch_size"):
        trainer.train_step(torch.zeros(1, 16).expand(1 << 48, 16))
