"""Helpers of the data sources: files by name, the bounded shuffle, and the removal of duplicates."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sae_outliers.data.base import matching_files, require_nonempty, shuffled
from sae_outliers.data.dedup import content_digest, distinct


def endless() -> Iterator[int]:
    """Yield numbers, and fail if they are read to the end."""
    yield from range(200)
    raise AssertionError("the stream was read to its end")


def test_a_seed_fixes_the_order_and_only_the_order() -> None:
    orders = [list(shuffled(range(500), seed, buffer=50)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(500)) for order in orders)


def test_no_more_is_read_than_the_buffer_and_what_was_taken() -> None:
    taken = list(islice(shuffled(endless(), 0, buffer=100), 90))
    assert max(taken) < 200
    assert taken != sorted(taken)


def test_where_documents_go_is_even() -> None:
    """A stream shorter than the buffer is shuffled completely: each document is equally often the first."""
    firsts = Counter(next(shuffled(range(4), seed, buffer=10)) for seed in range(800))
    assert all(140 < firsts[i] < 260 for i in range(4))


def test_a_fraction_takes_so_many_and_spreads_the_buffer() -> None:
    taken = list(shuffled(range(20_000), 0, buffer=100, fraction=0.1))
    assert len(set(taken)) == len(taken)
    assert 1800 < len(taken) < 2200
    assert max(taken[:50]) > 900  # the first come from what ten times the buffer spans
    assert taken == list(shuffled(range(20_000), 0, buffer=100, fraction=0.1))


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.5}, {"buffer": 0}])
def test_a_fraction_or_buffer_of_nothing_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1, and buffer="):
        list(shuffled([1], 0, **{"buffer": 1, **options}))  # type: ignore[arg-type]


def test_nothing_at_all_is_an_error_that_says_what_is_missing() -> None:
    assert list(require_nonempty(iter("abc"), "no letters")) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no letters"):
        require_nonempty([], "no letters")


def test_files_are_named_by_path_folder_or_pattern_each_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.fa", "b.FA.gz", "c.txt", "deep/d.fa"):
        (tmp_path / name).touch()
    everything = matching_files([str(tmp_path), str(tmp_path / "*.fa"), str(tmp_path / "c.txt")], (".fa",), 0)
    assert {path.name for path in everything} == {"a.fa", "b.FA.gz", "c.txt", "d.fa"}
    assert len(everything) == 4
    orders = {tuple(matching_files(str(tmp_path), (".fa",), seed)) for seed in range(20)}
    assert len(orders) == 6


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.fa").touch()
    assert matching_files("~/a.fa", (".fa",), 0) == [tmp_path / "a.fa"]


@pytest.mark.parametrize(("name", "message"), [
    ("", r"no \.fa file, plain or \.gz, below"), ("none.fa", "no file .*none.fa"), ("*.fa", r"no file .*\*\.fa"),
])  # fmt: skip
def test_names_without_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        matching_files(str(tmp_path / name), (".fa",), 0)


def test_repeats_are_dropped_whatever_a_document_is_and_the_order_stays() -> None:
    square, wide = Image.new("RGB", (2, 2)), Image.new("RGB", (4, 1))
    documents = ["b", "a", "b", np.zeros(3), np.zeros(3), np.ones(3), np.zeros(3, np.float32), torch.ones(2), square]
    documents += [torch.ones(2), wide, square.copy(), ("a", "b"), ("ab", ""), {"x": "a"}, {"x": "a"}, b"a", "\ud800"]
    counts = [sum(1 for _ in distinct(documents[:i])) for i in range(len(documents) + 1)]
    new = [i for i in range(len(documents)) if counts[i + 1] > counts[i]]
    assert new == [0, 1, 3, 5, 6, 7, 8, 10, 12, 13, 14, 17]
    assert list(distinct("bab")) == ["b", "a"]


def test_numbers_pass_as_they_are() -> None:
    assert list(distinct([1, 1, 2])) == [1, 1, 2]


def test_it_reads_no_further_than_asked() -> None:
    assert list(islice(distinct(f"{i % 7}" for i in endless()), 7)) == [str(i) for i in range(7)]


def test_digests_are_8_bytes_and_memory_is_what_is_said() -> None:
    assert len(content_digest("x" * 10_000)) == 8
    documents = distinct(f"{i:0200}" for i in range(20_000))
    tracemalloc.start()
    count = sum(1 for _ in documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 20_000 * 180  # while the set grows, its old and its new table
