from itertools import islice
from pathlib import Path

import pytest
import torch

from sae_outliers.activations.store import LayerFiles, LayerTokens

D = 3


def stored(directory: Path, rows: int, every_special: int = 5) -> LayerFiles:
    """Rows [i, i, i]; every fifth is special. Appended in uneven pieces."""
    files = LayerFiles(directory, 7)
    numbers = torch.arange(rows)
    x = numbers[:, None].float().expand(-1, D)
    for part in numbers.split(37):
        files.append(x[part], part % every_special == 0, batches=1)
    return files


def numbers(chunks) -> list[int]:  # type: ignore[no-untyped-def]
    return [int(i) for chunk in chunks for i in chunk[:, 0]]


def test_appended_rows_come_back_without_special_ones_eval_first_and_training_after(tmp_path: Path) -> None:
    files = stored(tmp_path, 1000)
    tokens = LayerTokens(files, n_eval=300, n_train=200, special_tokens=False)
    ordinary = [i for i in range(1000) if i % 5]
    assert files.extent().tokens == 800
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
    files = stored(tmp_path, 74)
    with files.rows_path.open("ab") as file:
        file.write(b"half a row")
    with files.special_path.open("ab") as file:
        file.write(b"\1\1")
    files.append(torch.full((2, D), 74.0), torch.tensor([False, False]), batches=1)
    tokens = LayerTokens(files, n_eval=60, n_train=0, special_tokens=True)
    assert numbers(tokens.eval_chunks())[-1] == 59
    assert files.rows_path.stat().st_size == 76 * D * 4
    assert files.extent().rows == 76
    assert files.extent().batches == 3


def test_too_few_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no activations are stored"):
        LayerTokens(LayerFiles(tmp_path, 1), 1, 0, False)
    files = stored(tmp_path, 100)
    with pytest.raises(ValueError, match="holds 80 tokens, not the 81 asked for"):
        LayerTokens(files, n_eval=81, n_train=0, special_tokens=False)
    with pytest.raises(ValueError, match=r"train.n_tokens=7 gives no batch of train.batch_size=8"):
        next(LayerTokens(files, n_eval=10, n_train=7, special_tokens=False).training_batches(8, 0))
