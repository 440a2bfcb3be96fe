import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_outliers.activations.layer_files import StoredLayer
from sae_outliers.activations.split import DOC_START, SPECIAL, find_split
from sae_outliers.activations.store import BLOCK_BATCHES, LayerTokens

D = 3


def stored(directory: Path, rows: int, every_special: int = 5, every_document: int = 1) -> StoredLayer:
    """Rows [i, i, i]; every fifth is special, and each a document of its own. Appended in uneven shards."""
    layer = StoredLayer(directory, 7)
    numbers = torch.arange(rows)
    flags = (numbers % every_special == 0) * SPECIAL + (numbers % every_document == 0) * DOC_START
    x = numbers[:, None].float().expand(-1, D)
    for part in numbers.split(37):
        layer.exact.append(x[part], flags[part].to(torch.uint8), items=1)
    return layer


def numbers(chunks) -> list[int]:  # type: ignore[no-untyped-def]
    return [int(i) for chunk in chunks for i in chunk[:, 0]]


def test_appended_rows_come_back_without_special_ones_eval_first_and_training_after(tmp_path: Path) -> None:
    layer = stored(tmp_path, 1000)
    tokens = LayerTokens(layer, n_eval=300, n_train=200, special_tokens=False)
    ordinary = [i for i in range(1000) if i % 5]
    assert layer.exact.extent().tokens == 800
    assert numbers(tokens.eval_chunks()) == ordinary[:300]
    epoch = list(islice(tokens.training_batches(20, seed=0), 10))
    assert sorted(numbers(epoch)) == ordinary[300:500]


def test_special_rows_are_tokens_when_asked_for(tmp_path: Path) -> None:
    tokens = LayerTokens(stored(tmp_path, 1000), n_eval=300, n_train=0, special_tokens=True)
    assert numbers(tokens.eval_chunks()) == list(range(300))
    rows, special = next(tokens.eval_rows())
    assert torch.equal(special, rows[:, 0] % 5 == 0)


def test_training_order_follows_the_seed_and_goes_on_from_any_batch(tmp_path: Path) -> None:
    tokens = LayerTokens(stored(tmp_path, 3000), n_eval=100, n_train=2000, special_tokens=False)

    def take(seed: int, start: int, n: int) -> list[int]:
        return numbers(islice(tokens.training_batches(8, seed, start), n))

    whole = take(0, 0, 600)  # two epochs and a half
    assert take(0, 137, 600 - 137) == whole[137 * 8 :]
    assert take(0, 400, 200) == whole[400 * 8 :]
    assert take(1, 0, 600) != whole
    epoch = next(whole[:n] for n in range(8, len(whole), 8) if len(set(whole[: n + 8])) < n + 8)
    assert len(epoch) > 1900  # each token once before any comes again, but for the rest of a block
    assert whole[: len(epoch)] != whole[len(epoch) : 2 * len(epoch)]


def test_rows_that_a_killed_process_left_behind_the_extent_are_overwritten(tmp_path: Path) -> None:
    layer = stored(tmp_path, 74)
    with layer.exact.rows_path.open("ab") as file:
        file.write(b"half a row")
    with layer.exact.flags_path.open("ab") as file:
        file.write(b"\1\1")
    layer.exact.append(torch.full((2, D), 74.0), torch.zeros(2, dtype=torch.uint8), items=1)
    tokens = LayerTokens(layer, n_eval=60, n_train=0, special_tokens=True)
    assert numbers(tokens.eval_chunks())[-1] == 59
    assert layer.exact.rows_path.stat().st_size == 76 * D * 4
    assert layer.exact.extent().rows == 76
    assert layer.exact.extent().items == 3


def test_too_few_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no activations are stored"):
        LayerTokens(StoredLayer(tmp_path, 1), 1, 0, False)
    layer = stored(tmp_path, 100)
    with pytest.raises(ValueError, match="holds 80 tokens: too few for n_eval=81 and, in other documents"):
        LayerTokens(layer, n_eval=81, n_train=0, special_tokens=False)
    with pytest.raises(ValueError, match=r"train\.n_tokens=7 gives no batch of train\.batch_size=8"):
        next(LayerTokens(layer, n_eval=10, n_train=7, special_tokens=False).training_batches(8, 0))


def test_training_begins_with_a_document_of_which_no_token_is_evaluated(tmp_path: Path) -> None:
    layer = stored(tmp_path, 1000, every_document=70)
    tokens = LayerTokens(layer, n_eval=300, n_train=200, special_tokens=False)
    ordinary = [i for i in range(1000) if i % 5]
    assert numbers(tokens.eval_chunks()) == ordinary[:300]  # rows 1 to 374, the last of them in document 5
    trained = sorted(numbers(islice(tokens.training_batches(20, seed=0), 10)))
    assert trained == [i for i in ordinary if i >= 6 * 70][:200]
    assert layer.exact.holds(300, 464)
    assert not layer.exact.holds(300, 465)


def test_parts_against_a_loop_over_the_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        flags = rng.choice([0, SPECIAL, DOC_START, SPECIAL | DOC_START], 40).astype("u1")
        n_eval, n_train, special_tokens = int(rng.integers(1, 12)), int(rng.integers(0, 12)), bool(rng.integers(2))
        evaluated: list[int] = []
        trained: list[int] = []
        for row, flag in enumerate(flags):
            begun = begun_before(flags, evaluated, n_eval, row)
            if flag & SPECIAL and not special_tokens:
                continue
            if len(evaluated) < n_eval:
                evaluated.append(row)
            elif begun and len(trained) < n_train:
                trained.append(row)
        parts = find_split(flags, n_eval, n_train, special_tokens)
        if len(evaluated) < n_eval or len(trained) < n_train:
            assert parts is None
            continue
        assert parts is not None
        assert parts.eval_end == evaluated[-1] + 1
        if n_train:
            kept = [
                row for row in range(parts.train_start, parts.train_end) if special_tokens or not flags[row] & SPECIAL
            ]
            assert kept == trained


def begun_before(flags: np.ndarray, evaluated: list[int], n_eval: int, row: int) -> bool:
    """Whether a document began between the last evaluated row and this one."""
    return len(evaluated) == n_eval and bool((flags[evaluated[-1] + 1 : row + 1] & DOC_START).any())


@pytest.mark.parametrize("path", ["rows_path", "flags_path"])
def test_a_shard_that_was_changed_is_named_when_it_is_read_and_the_others_are_not_touched(
    tmp_path: Path, path: str
) -> None:
    layer = stored(tmp_path, 10_000)
    whole = layer.exact.rows_path.read_bytes()
    damaged = getattr(layer.exact, path)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4  # among rows 4995 to 5032
    damaged.write_bytes(content)
    assert len(numbers(LayerTokens(layer, 3000, 0, False).eval_chunks())) == 3000
    with pytest.raises(ValueError, match=r"rows 4995 to 5032 of .*layer_07.f32 are not what was written there: delete"):
        numbers(LayerTokens(layer, 6000, 0, False).eval_chunks())
    with pytest.raises(ValueError, match="rows 4995 to 5032"):
        list(islice(LayerTokens(layer, 10, 7000, False).training_batches(100, 0), 70))
    assert len(whole) == 10_000 * D * 4


def test_blocks_that_are_read_ahead_change_nothing(tmp_path: Path) -> None:
    tokens = LayerTokens(stored(tmp_path, 3000), n_eval=100, n_train=2000, special_tokens=False)
    for start in (0, 137):
        alone, ahead = (list(islice(tokens.training_batches(8, 0, start, n), 600)) for n in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(alone, ahead, strict=True))


@pytest.mark.parametrize(("every_special", "blocks_ahead", "blocks"), [(5, 0, 1), (10**9, 0, 1), (5, 1, 2)])
def test_memory_holds_the_blocks_that_it_says(
    every_special: int, blocks_ahead: int, blocks: int, tmp_path: Path
) -> None:
    """Blocks are NumPy's memory, which tracemalloc sees; batches are torch's."""
    layer, d, batch_size = StoredLayer(tmp_path, 1), 64, 16
    block = BLOCK_BATCHES * batch_size * d * 4
    special = torch.arange(20_000) % every_special == 0
    layer.exact.append(torch.zeros(20_000, d), (DOC_START + SPECIAL * special).to(torch.uint8), items=1)
    tokens = LayerTokens(layer, n_eval=100, n_train=12_000, special_tokens=False)
    tracemalloc.start()
    for _ in islice(tokens.training_batches(batch_size, 0, 0, blocks_ahead), 600):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.7 * block * blocks < peak < 1.3 * block * blocks
