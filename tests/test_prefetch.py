import threading
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from sae_outliers.utils.prefetch import on_device, read_ahead


def test_items_come_in_order_from_one_thread_no_more_than_n_ahead() -> None:
    made: list[int] = []
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            threads.add(threading.get_ident())
            yield i

    taken = []
    for item in read_ahead(items(), 3):
        taken.append(item)
        assert len(made) <= len(taken) + 3
    assert taken == list(range(20))
    assert threading.get_ident() not in threads
    assert len(threads) == 1


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("a shard is damaged")

    ahead = read_ahead(items(), 2)
    assert list(islice(ahead, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="a shard is damaged"):
        next(ahead)


def test_a_reader_that_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    endless = read_ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_on_the_cpu_tensors_are_passed_on_as_they_are() -> None:
    tensors = [torch.ones(2), torch.zeros(3)]
    assert all(a is b for a, b in zip(on_device(tensors, torch.device("cpu")), tensors, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_they_arrive_whole_and_in_order_whatever_it_computes_meanwhile() -> None:
    tensors = [torch.full((1000, 257), float(i)) for i in range(40)]
    busy = torch.randn(2000, 2000, device="cuda")
    for i, x in enumerate(on_device(iter(tensors), torch.device("cuda"))):
        busy = busy @ busy / busy.norm()
        assert x.is_cuda
        assert x.eq(i).all()
