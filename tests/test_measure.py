"""The first point of a run's curves, whose figures come with the fates at initialisation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_outliers.runs.layer_data import SeverityMeter
from sae_outliers.runs.measure import Measurements
from sae_outliers.runs.setup import Fates, RunSetup, set_up
from sae_outliers.sae.evaluation import evaluate
from sae_outliers.stats.transforms import postln
from tests.conftest import composed

CPU = torch.device("cpu")
CONDITIONS = ("", "centering=on", "centering=whiten", "data.rescale_mean=5", "init.b_dec=mean data.rescale_mean=2",
              "sae=relu", "centering=whiten data.rescale_mean=5 sae=batchtopk", "train.input_scale=sqrt_d")  # fmt: skip


def raw_tokens() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(900, 16, generator=rng) * torch.arange(1, 17) + torch.randn(16, generator=rng)


def setups(rows: Tensor, path: Path) -> list[RunSetup]:
    """A set-up for each condition, as a joint run has them."""
    meter = SeverityMeter("postln", False, CPU)
    meter.update(rows, torch.zeros(len(rows), dtype=torch.bool))
    small = ("model=offline/minilm", "sae.n_features=128", "sae.k=6", "train=short", "train.steps=3")
    return [
        set_up(composed(*small, *condition.split()), 1, path / str(i), meter.severity, CPU)
        for i, condition in enumerate(CONDITIONS)
    ]


def test_the_first_point_is_that_of_an_evaluation_by_itself(tmp_path: Path) -> None:
    rows = raw_tokens()
    chunks = postln(rows).split(400)
    made = setups(rows, tmp_path)
    fates = Fates(made)
    fates.count(chunks)
    for condition, setup in zip(CONDITIONS, made, strict=True):
        found = Measurements(setup, lambda: iter(chunks), fates.evaluation_of(setup)).point(0)
        tokens = [setup.rescale_mean(chunk) for chunk in chunks]
        expected = evaluate(setup.sae, setup.centering, tokens, setup.tokens.variance.sum().item())
        assert found["fvu"] == pytest.approx(expected.fvu, rel=1e-5), condition
        assert found["l0"] == pytest.approx(expected.l0, rel=1e-3), condition
        assert found["dead_pct"] == pytest.approx(expected.dead_pct, abs=1), condition
        assert found["dead_pct_topk"] == pytest.approx(expected.fates.dead_pct_topk, abs=1), condition
        assert found["dead_pct_topk"] == setup.fates.dead_pct_topk, condition
        along = setup.tokens.mean / setup.tokens.mean.square().sum()
        in_features = found["mean_in_features"]
        x_hat = in_features + found["mean_in_bias"]  # type: ignore[operator]
        assert x_hat == pytest.approx((expected.mean_x_hat @ along).item(), abs=1e-5), condition
    assert len(fates.products) < len(made)  # those that share a product were among them
    assert fates.alone


def test_later_points_are_of_the_weights_as_they_are_then(tmp_path: Path) -> None:
    rows = raw_tokens()
    chunks = postln(rows).split(400)
    setup = setups(rows, tmp_path)[0]
    fates = Fates([setup])
    fates.count(chunks)
    measured = Measurements(setup, lambda: iter(chunks), fates.evaluation_of(setup))
    first = measured.point(0)
    with torch.no_grad():
        setup.sae.W_dec.mul_(0.5)
    middle, last = measured.point(1), measured.point(3)
    assert middle["fvu"] == pytest.approx(last["fvu"], rel=1e-6)
    assert middle["fvu"] != pytest.approx(first["fvu"], rel=1e-2)
    assert measured.latest.fvu == last["fvu"]
