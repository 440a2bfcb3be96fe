"""float16 of what varies: what it keeps of a number, and that stores of both kinds are read, joined and resumed."""

import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_outliers.activations import extract as extraction
from sae_outliers.activations.coding import CENTRED_ON, Centred
from sae_outliers.activations.layer_files import LayerFiles, StoredLayer
from sae_outliers.activations.split import DOC_START, SPECIAL
from sae_outliers.activations.store import BLOCK_BATCHES, LayerTokens
from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import extract, is_stored, stored_layer
from sae_outliers.runs.identity import run_directories, store_directory
from sae_outliers.runs.layer_data import SeverityMeter
from sae_outliers.runs.setup import Fates, set_up
from sae_outliers.stats.moments import moments
from tests.conftest import composed

D = 6
MEAN, CONSTANT, SPARSE, OUTLIER = 0, 1, 2, 3  # what is special about these dimensions


def rows_like_a_networks(n: int, seed: int = 0) -> torch.Tensor:
    """A dimension with a mean of 10,000 σ, one that is constant at first, one mostly zero, one with massive tokens."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * torch.tensor([0.3, 0, 1, 0.5, 7, 1e-3])
    x[:, MEAN] += 3000
    x[:, CONSTANT] = 0.25
    x[CENTRED_ON:, CONSTANT] += torch.sin(torch.arange(n - CENTRED_ON))
    x[:, SPARSE] *= torch.arange(n) % 50 == 0
    x[::400, OUTLIER] = -5000
    x[CENTRED_ON + 7, OUTLIER] = 20_000  # 40,000 σ
    return x


def flags_of(n: int) -> torch.Tensor:
    return (DOC_START * (torch.arange(n) % 20 == 0) + SPECIAL * (torch.arange(n) % 20 == 10)).to(torch.uint8)


def stored(directory: Path, x: torch.Tensor, exact: int = CENTRED_ON, shard: int = 500) -> StoredLayer:
    """The first `exact` rows in float32, the others in float16."""
    layer, flags = StoredLayer(directory, 1), flags_of(len(x))
    layer.exact.append(x[:exact], flags[:exact], items=1)
    layer.begin_rest()
    for part in torch.arange(exact, len(x)).split(shard):
        layer.rest.append(x[part], flags[part], items=1)
    return layer


def exact_alone(directory: Path, x: torch.Tensor) -> StoredLayer:
    layer = StoredLayer(directory, 1)
    layer.exact.append(x, flags_of(len(x)), items=1)
    return layer


def batches(layer: StoredLayer, n: int) -> torch.Tensor:
    """The first n batches of 32 training tokens, in the order of a seed."""
    return torch.cat(list(islice(LayerTokens(layer, 500, 3000, False).training_batches(32, 3), n)))


def bound(x: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float16 has 11 digits, below 2^-14 steps of 2^-24; and what is read is a float32."""
    return np.maximum(2.0**-11 * np.abs(x - centre), 2.0**-25 * scale) + 2.0**-23 * np.abs(x)


def test_rows_come_back_as_a_plain_quantisation_gives_them_and_within_the_bound(tmp_path: Path) -> None:
    x = rows_like_a_networks(4000)
    read = batches(stored(tmp_path / "both", x), 93).numpy()
    expected = batches(exact_alone(tmp_path / "exact", x), 93).numpy()

    first = x[:CENTRED_ON].numpy()
    ordinary = first[flags_of(CENTRED_ON).numpy() & SPECIAL == 0]
    centre = np.sort(ordinary, 0)[(len(ordinary) - 1) // 2]
    deviation = np.abs(ordinary - centre).mean(0, dtype=np.float64)
    scale = np.float32(2) ** np.ceil(np.log2(np.maximum(64 * deviation, np.abs(first).max() / 256))).astype(np.float32)
    plain = centre + scale * ((expected - centre) / scale).astype(np.float16).astype(np.float32)
    is_exact = (read == expected).all(1)  # training tokens among the float32 rows
    assert (read[~is_exact] == plain[~is_exact]).all()
    assert (np.abs(read.astype(np.float64) - expected) <= bound(expected, centre, scale)).all()
    assert 300 < is_exact.sum() < 600


def test_what_is_studied_is_kept_where_float16_and_bfloat16_lose_it(tmp_path: Path) -> None:
    x = rows_like_a_networks(20_000)
    x[:, OUTLIER] = x[:, 4]
    read = Centred.on(x[:CENTRED_ON], torch.ones(CENTRED_ON, dtype=torch.bool))
    back = read.decode(torch.from_numpy(read.encode(x)))
    sigma = x.double().std(0)
    error = (back - x).double().square().mean(0).sqrt() / sigma
    assert error.max() < 1e-3
    assert error[MEAN] < 5e-4
    lost = (x.half().float() - x).double().square().mean(0).sqrt() / sigma
    assert lost[MEAN] > 0.9
    assert moments([back]).gamma == pytest.approx(moments([x]).gamma, rel=1e-5)
    variance = moments([back]).variance / moments([x]).variance
    assert (variance - 1).abs().max() < 1e-4


def test_a_massive_token_and_a_dimension_that_was_constant_are_stored_right(tmp_path: Path) -> None:
    x = rows_like_a_networks(3000)
    coding = Centred.on(x[:CENTRED_ON], torch.ones(CENTRED_ON, dtype=torch.bool))
    back = coding.decode(torch.from_numpy(coding.encode(x)))
    assert back[CENTRED_ON + 7, OUTLIER] == pytest.approx(20_000, rel=2**-11)
    later = slice(CENTRED_ON, None)
    assert (back[later, CONSTANT] - x[later, CONSTANT]).abs().max() < 2**-11
    assert (back[:CENTRED_ON, CONSTANT] == 0.25).all()


def test_infinite_and_undefined_numbers_stay_what_they_are() -> None:
    x = rows_like_a_networks(2000)
    x[5, 4], x[7, 4], x[1500, 2] = torch.inf, torch.nan, -torch.inf
    coding = Centred.on(x[:CENTRED_ON], torch.ones(CENTRED_ON, dtype=torch.bool))
    back = coding.decode(torch.from_numpy(coding.encode(x)))
    assert torch.equal(back.isfinite(), x.isfinite())
    assert back[5, 4] == torch.inf
    assert back[1500, 2] == -torch.inf


def test_a_number_that_does_not_fit_is_refused_and_nothing_of_its_shard_is_kept(tmp_path: Path) -> None:
    layer = stored(tmp_path, rows_like_a_networks(2000))
    before = layer.rest.extent()
    far = rows_like_a_networks(10 + CENTRED_ON)[CENTRED_ON:]
    far[3, CONSTANT] = 3e6
    with pytest.raises(
        ValueError,
        match=r"layer_01.f16: 3e\+06 in dimension 1 is too far from its centre, 0.25: add store_dtype=float32",
    ):
        layer.rest.append(far, flags_of(10), items=1)
    assert layer.rest.extent() == before
    layer.exact.append(far, flags_of(10), items=1)


def test_a_dimension_of_zeros_alone_and_a_layer_that_begins_with_zeros_are_stored() -> None:
    for first in (torch.zeros(CENTRED_ON, 2), torch.tensor([[0.0, 1.0]]).expand(CENTRED_ON, 2)):
        coding = Centred.on(first, torch.zeros(CENTRED_ON, dtype=torch.bool))  # special, all of them
        x = torch.tensor([[0.5, 2.0], [0.0, 1.0]])
        torch.testing.assert_close(coding.decode(torch.from_numpy(coding.encode(x))), x, rtol=2**-11, atol=1e-7)


def test_evaluation_tokens_are_read_as_they_were_and_a_block_in_both_dtypes_is_one(tmp_path: Path) -> None:
    x = rows_like_a_networks(4000)
    layers = stored(tmp_path / "both", x), exact_alone(tmp_path / "exact", x)
    both, whole = (LayerTokens(layer, 500, 3000, False) for layer in layers)
    assert torch.equal(torch.cat(list(both.eval_chunks())), torch.cat(list(whole.eval_chunks())))
    for one, other in zip(both.eval_rows(), whole.eval_rows(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert both.parts == whole.parts
    assert both.parts.train_start < CENTRED_ON < both.parts.train_end
    one, other = (batches(layer, 200) for layer in layers)
    torch.testing.assert_close(one, other, rtol=0.01, atol=0.01)
    assert one.dtype == torch.float32


@pytest.mark.parametrize("file", ["rows_path", "flags_path"])
def test_a_float16_shard_that_was_changed_is_named(tmp_path: Path, file: str) -> None:
    layer = stored(tmp_path, rows_like_a_networks(4000))
    damaged: Path = getattr(layer.rest, file)
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 4
    damaged.write_bytes(content)
    tokens = LayerTokens(layer, 500, 3000, False)
    assert len(torch.cat(list(tokens.eval_chunks()))) == 500
    with pytest.raises(
        ValueError, match=r"rows 3524 to 4000 of .*layer_01.f16 are not .*: delete .*layer_01.f16.json,"
    ):
        list(islice(tokens.training_batches(8, 0), 370))


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"\1" + content[1:], None])
def test_a_damaged_centre_is_named_in_one_sentence(tmp_path: Path, damage: Any) -> None:
    layer = stored(tmp_path, rows_like_a_networks(4000))
    path = layer.rest.centre_path
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    remedy = r"layer_01.f16.centre is missing or not what was written there: delete .*layer_01.f16.json, and the same"
    with pytest.raises(ValueError, match=remedy):
        LayerTokens(layer, 500, 3000, False)
    with pytest.raises(ValueError, match=remedy):
        layer.rest.append(rows_like_a_networks(2000)[:5], flags_of(5), items=1)
    assert len(torch.cat(list(LayerTokens(layer, 500, 0, False).eval_chunks()))) == 500


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rowz": 3}'])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_damaged_extent_is_named_in_one_sentence(tmp_path: Path, content: str, dtype: str) -> None:
    files = LayerFiles(tmp_path, 1, dtype)
    files.extent_path.write_text(content)
    with pytest.raises(
        ValueError, match=r"layer_01.*json is damaged: delete .*json, and the same command extracts this"
    ):
        files.extent()


def test_memory_holds_a_block_in_16_bits(tmp_path: Path) -> None:
    layer, flags = StoredLayer(tmp_path, 1), torch.full((14_000,), DOC_START, dtype=torch.uint8)
    layer.exact.append(torch.randn(1000, 64), flags[:1000], items=1)
    layer.begin_rest()
    layer.rest.append(torch.randn(13_000, 64), flags[1000:], items=1)
    tokens, block = LayerTokens(layer, 1000, 13_000, False), BLOCK_BATCHES * 16 * 64 * 2
    tracemalloc.start()
    for _ in islice(tokens.training_batches(16, 0), 600):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.7 * block < peak < 1.3 * block


# --- extraction -----------------------------------------------------------------------------------------


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    """1,200 evaluation tokens, then 3,000 to train on."""
    trained = ("train=short", "train.steps=8", "train.batch_size=256", "train.n_tokens=3000", "n_eval=1200")
    small = ("model=synthetic/sparse", "sae.n_features=256", "sae.k=8", "tracker=none", "data.batch_size=1")
    cfg: RunConfig = composed(*small, *trained, "layer=1", f"results_dir={tmp_path}", *overrides)
    return cfg


def contents(cfg: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store_directory(cfg).glob("layer_*")}


def test_training_tokens_take_half_the_bytes_and_evaluation_tokens_are_exact(tmp_path: Path) -> None:
    cfg, exact = config(tmp_path / "16"), config(tmp_path / "32", "store_dtype=float32")
    extract(cfg, [1])
    extract(exact, [1])
    names = ["layer_01.f16", "layer_01.f16.centre", "layer_01.f16.flags.u1", "layer_01.f16.json"]
    as_before = ["layer_01.f32", "layer_01.flags.u1", "layer_01.json"]
    assert sorted(contents(cfg)) == names + as_before
    assert sorted(contents(exact)) == as_before
    halves, wholes = len(contents(cfg)["layer_01.f16"]) // 2, len(contents(exact)["layer_01.f32"]) // 4
    assert halves + len(contents(cfg)["layer_01.f32"]) // 4 == wholes
    assert contents(exact)["layer_01.f32"].startswith(contents(cfg)["layer_01.f32"])
    assert "begins" not in contents(cfg)["layer_01.json"].decode()


@pytest.mark.parametrize("at", [1, 3, 5, 9])
def test_an_interrupted_extraction_goes_on_and_gives_the_same_bytes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = config(tmp_path / "whole"), config(tmp_path / "cut")
    extract(whole, [1])
    seen = 0
    update = extraction.Forecast.update

    def interrupted(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(extraction.Forecast, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(cut, [1])
    monkeypatch.undo()
    assert not is_stored(cut, [1])
    extract(cut, [1])
    assert is_stored(cut, [1])
    one, other = contents(whole), contents(cut)
    assert {name: content for name, content in one.items() if not name.endswith("json")} == {
        name: content for name, content in other.items() if not name.endswith("json")
    }


def test_a_float32_store_of_a_former_version_is_read_and_extended_where_it_ends(tmp_path: Path) -> None:
    former = config(tmp_path, "store_dtype=float32")
    extract(former, [1])
    before = contents(former)
    cfg = config(tmp_path)
    assert is_stored(cfg, [1])
    extract(cfg, [1])
    assert contents(cfg) == before
    more = config(tmp_path, "train.n_tokens=5000")
    assert not is_stored(more, [1])
    extract(more, [1])
    assert {name: contents(more)[name] for name in before} == before
    exact = config(tmp_path / "exact", "train.n_tokens=5000", "store_dtype=float32")
    extract(exact, [1])
    read, expected = (LayerTokens(stored_layer(one, 1), 1200, 5000, False) for one in (more, exact))
    for x, y in islice(zip(read.training_batches(256, 0), expected.training_batches(256, 0), strict=False), 15):
        torch.testing.assert_close(x, y, rtol=2**-10, atol=0.01)


def test_float32_may_be_asked_for_later_and_only_what_is_missing_is_extracted(tmp_path: Path) -> None:
    cfg, exact = config(tmp_path), config(tmp_path, "store_dtype=float32")
    assert run_directories(cfg, [1]) == run_directories(exact, [1])
    extract(cfg, [1])
    began = contents(cfg)
    assert not is_stored(exact, [1])
    extract(exact, [1])
    assert is_stored(exact, [1])
    assert contents(exact)["layer_01.f32"].startswith(began["layer_01.f32"])
    alone = config(tmp_path / "alone", "store_dtype=float32")
    extract(alone, [1])
    assert contents(exact)["layer_01.f32"] == contents(alone)["layer_01.f32"]
    x, y = (
        next(LayerTokens(stored_layer(one, 1), 1200, 3000, False).training_batches(64, 0)) for one in (exact, alone)
    )
    assert torch.equal(x, y)


def test_more_evaluation_tokens_later_are_float32_too(tmp_path: Path) -> None:
    small, large = config(tmp_path), config(tmp_path, "n_eval=2500")
    extract(small, [1])
    extract(large, [1])
    exact = config(tmp_path / "exact", "n_eval=2500", "store_dtype=float32")
    extract(exact, [1])
    read, expected = (LayerTokens(stored_layer(one, 1), 2500, 3000, False) for one in (large, exact))
    assert torch.equal(torch.cat(list(read.eval_chunks())), torch.cat(list(expected.eval_chunks())))


def test_a_layer_whose_float32_rows_were_deleted_is_whole_again(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    extract(cfg, [1])
    before = contents(cfg)
    stored_layer(cfg, 1).exact.extent_path.unlink()
    assert not is_stored(cfg, [1])
    extract(cfg, [1])
    assert contents(cfg) == before


@pytest.mark.weights
def test_gamma_and_fates_of_a_networks_layer(tmp_path: Path) -> None:
    cfg = composed(
        "model=offline/minilm", "train=none", "n_eval=3000", "sae.n_features=2048", f"results_dir={tmp_path}"
    )
    extract(cfg, [3])
    tokens = LayerTokens(stored_layer(cfg, 3), 3000, 0, False)
    rows = torch.cat(list(tokens.eval_chunks()))
    coding = Centred.on(rows[:CENTRED_ON], torch.ones(CENTRED_ON, dtype=torch.bool))
    fates = []
    gammas = []
    for x in (rows, coding.decode(torch.from_numpy(coding.encode(rows)))):
        meter = SeverityMeter("postln", False, torch.device("cpu"))
        meter.update(x, torch.zeros(len(x), dtype=torch.bool))
        setup = set_up(cfg, 3, tmp_path, meter.severity, torch.device("cpu"))
        Fates([setup]).count([torch.nn.functional.layer_norm(x, x.shape[1:]) * x.shape[1] ** 0.5])
        fates.append(setup.fates.fates)
        gammas.append(meter.severity.sae_tokens.gamma)
    assert not torch.equal(rows, x)
    assert gammas[1] == pytest.approx(gammas[0], rel=1e-5)
    assert (fates[0] != fates[1]).sum() <= 2
