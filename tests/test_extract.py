"""Extraction on a real model: the layers' outputs are the network's, and a store is filled once, resumed, extended."""

import itertools
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from sae_outliers.activations import extract as extraction
from sae_outliers.activations import stream
from sae_outliers.activations.capture import capture
from sae_outliers.activations.split import DOC_START, SPECIAL
from sae_outliers.activations.store import LayerTokens
from sae_outliers.activations.stream import TokenStream, items_per_batch, token_rows
from sae_outliers.config import RunConfig
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.runs.activations import extract, stored_layer
from sae_outliers.runs.identity import store_directory
from tests.conftest import ROOT, composed

TEXTS = [
    "A sparse autoencoder learns a dictionary of directions. " * 20,
    "Outlier dimensions have a mean that is large beside their variation. " * 12,
]


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    cfg: RunConfig = composed("model=offline/minilm", "train=none", f"results_dir={tmp_path}", *overrides)
    return cfg


@pytest.fixture(scope="module")
def minilm() -> Any:
    return instantiate(composed("model=offline/minilm").model.loader)


@pytest.mark.weights
def test_captured_layers_are_the_hidden_states_that_transformers_returns(minilm: Any) -> None:
    batch = next(minilm.batches(TEXTS, 2))
    with torch.no_grad():
        expected = minilm.module(**batch.inputs, output_hidden_states=True).hidden_states
    captured = capture(minilm, batch, [2, 6])
    torch.testing.assert_close(captured[2], expected[2])
    torch.testing.assert_close(captured[6], expected[6])


@pytest.mark.weights
def test_the_forward_pass_stops_at_the_last_wanted_layer(minilm: Any) -> None:
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(minilm.blocks, 1)
    ]
    capture(minilm, next(minilm.batches(TEXTS, 2)), [3, 1])
    for handle in handles:
        handle.remove()
    assert ran == [1, 2, 3]


@pytest.mark.weights
def test_a_layer_that_the_model_does_not_have_or_reach_is_named(minilm: Any) -> None:
    batch = next(minilm.batches(TEXTS, 2))
    with pytest.raises(ValueError, match="layer 7 does not exist: this model has layers 1 to 6"):
        capture(minilm, batch, [7])
    elsewhere = replace(minilm, blocks=[torch.nn.Identity()])
    with pytest.raises(RuntimeError, match=r"did not reach layer\(s\) \[1\]"):
        capture(elsewhere, batch, [1])


@pytest.mark.weights
def test_an_interrupted_extraction_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(tmp_path / "whole", "n_eval=1000", "data.batch_size=2")
    extract(whole, [1, 2])

    cut = config(tmp_path / "cut", "n_eval=1000", "data.batch_size=2")
    calls = 0

    def capture_twice(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return capture(*arguments)

    monkeypatch.setattr(stream, "capture", capture_twice)
    with pytest.raises(KeyboardInterrupt):
        extract(cut, [1, 2])
    monkeypatch.undo()
    assert 0 < stored_layer(cut, 2).exact.extent().tokens < 1000
    extract(cut, [1, 2])
    for layer in (1, 2):
        one, other = (
            stored_layer(whole, layer).exact,
            stored_layer(cut, layer).exact,
        )
        assert one.rows_path.read_bytes() == other.rows_path.read_bytes()
        assert one.flags_path.read_bytes() == other.flags_path.read_bytes()


KILLED = """
import os, signal, sys
from sae_outliers.activations import extract, stream
from sae_outliers.runs.activations import extract as runs_extract
from tests.test_extract import config
from pathlib import Path

extract.SHARD_BYTES = 900_000  # a shard every other batch
capture, calls = stream.capture, 0

def killed_at_the_sixth(*arguments):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return capture(*arguments)

stream.capture = killed_at_the_sixth
runs_extract(config(Path(sys.argv[1]), "n_eval=1500", "data.batch_size=1"), [1, 2])
"""


@pytest.mark.weights
def test_after_a_kill_it_goes_on_from_the_last_whole_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut"], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    cut = config(tmp_path / "cut", "n_eval=1500", "data.batch_size=1")
    left = stored_layer(cut, 1).exact.extent()
    assert left.items == 4  # five batches of one item came in, and the fifth was not written yet
    monkeypatch.setattr(extraction, "SHARD_BYTES", 900_000)
    extract(cut, [1, 2])
    whole = config(tmp_path / "whole", "n_eval=1500", "data.batch_size=1")
    extract(whole, [1, 2])
    one, other = stored_layer(whole, 2).exact, stored_layer(cut, 2).exact
    assert one.rows_path.read_bytes() == other.rows_path.read_bytes()
    assert one.extent() == other.extent()


@pytest.mark.weights
def test_a_store_is_reused_extended_and_joined_by_other_layers(tmp_path: Path) -> None:
    small, large = config(tmp_path, "n_eval=500"), config(tmp_path, "n_eval=1500")
    assert store_directory(small) == store_directory(large)
    assert store_directory(small) != store_directory(config(tmp_path, "seed=1"))
    extract(small, [1])
    written = stored_layer(small, 1).exact.rows_path.stat().st_mtime_ns
    extract(small, [1])
    assert stored_layer(small, 1).exact.rows_path.stat().st_mtime_ns == written
    extract(large, [1, 2])
    first, second = (LayerTokens(stored_layer(large, layer), 1500, 0, False) for layer in (1, 2))
    assert sum(len(x) for x in first.eval_chunks()) == sum(len(x) for x in second.eval_chunks()) == 1500


@pytest.mark.weights
def test_data_that_end_too_early_are_named(tmp_path: Path) -> None:
    cfg = config(tmp_path, "n_eval=100000")
    # the corpus is cut so that the test need not run all of it
    cfg.data.source = {"_target_": "tests.test_extract.two_documents"}
    with pytest.raises(ValueError, match=r"data=text has only \d+ tokens for minilm, but .* ask for 100000,"):
        extract(cfg, [1])


def two_documents() -> Any:
    return lambda seed: iter(TEXTS)


def test_padding_is_left_out_and_flags_tell_special_tokens_and_where_documents_begin() -> None:
    hidden = torch.arange(2 * 6, dtype=torch.float32).reshape(2, 6, 1)
    rows, flags = token_rows(hidden, BATCH, None, 0, 0)
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert (flags & SPECIAL).nonzero().flatten().tolist() == [0, 6]
    assert (flags & DOC_START).nonzero().flatten().tolist() == [6]


def test_the_draw_is_bounded_repeatable_and_the_same_however_items_are_batched() -> None:
    hidden = torch.arange(2 * 6, dtype=torch.float32).reshape(2, 6, 1)
    rows, flags = token_rows(hidden, BATCH, 3, 0, 5)
    assert [int(i) // 6 for i in rows[flags & SPECIAL == 0]] == [0, 0, 0, 1, 1]
    assert (flags & SPECIAL).sum() == 2
    assert torch.equal(rows, token_rows(hidden, BATCH, 3, 0, 5)[0])
    draws = {tuple(token_rows(hidden, BATCH, 3, 0, n)[0].flatten().tolist()) for n in range(20)}
    assert len(draws) > 3
    alone = Batch({}, BATCH.mask[1:], BATCH.special[1:])  # type: ignore[index]
    assert torch.equal(token_rows(hidden[1:], alone, 3, 0, 6)[0], rows[4:])


BATCH = Batch(
    {},
    mask=torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool(),
    special=torch.tensor([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool(),
    begins=torch.tensor([False, True]),
)


def test_a_mask_that_does_not_fit_the_blocks_output_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"the mask covers \[items, positions\] = \[2, 5\], the block's output \[2, 6\]"
    ):
        token_rows(torch.zeros(2, 6, 1), Batch({}, torch.ones(2, 5).bool()), None, 0, 0)


@pytest.mark.weights
def test_batches_of_another_size_store_the_same_tokens(tmp_path: Path) -> None:
    stored = []
    for size in (3, 8):
        asked = ("n_eval=2000", f"data.batch_size={size}", "data.tokens_per_item=20", "store_dtype=float32")
        cfg = config(tmp_path / str(size), *asked)
        extract(cfg, [1])
        stored.append(torch.cat(list(LayerTokens(stored_layer(cfg, 1), 2000, 0, False).eval_chunks())))
    torch.testing.assert_close(stored[0], stored[1], atol=1e-4, rtol=1e-4)


@pytest.mark.weights
def test_no_document_is_in_both_the_evaluation_and_the_training_part(tmp_path: Path, minilm: Any) -> None:
    cfg = config(tmp_path, "n_eval=700", "train=short", "train.n_tokens=900", "train.steps=1")
    extract(cfg, [1])
    tokens = LayerTokens(stored_layer(cfg, 1), 700, 900, False)
    lengths = [  # of the documents in the order in which they come, as a loop over them gives it
        sum(len(window) - 2 for window in minilm.items(document))
        for document in itertools.islice(instantiate(cfg.data.source)(cfg.seed), 60)
    ]
    ends = list(itertools.accumulate(lengths))
    flags = tokens._flags[: tokens.parts.train_start]
    assert (flags & SPECIAL == 0).sum() == next(end for end in ends if end >= 700)


@pytest.mark.weights
def test_it_says_what_it_will_take_and_refuses_where_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(tmp_path, "n_eval=3000")
    usage = shutil.disk_usage(tmp_path)
    with caplog.at_level("INFO"):
        extract(cfg, [1, 2])
    (said,) = [message for message in caplog.messages if "to go" in message]
    assert "minilm, 2 layer(s), 3000 tokens to go: about 0.00" in said
    stated = float(said.split("about ")[1].split()[0]) * 1e9
    written = sum(stored_layer(cfg, layer).exact.rows_path.stat().st_size for layer in (1, 2))
    assert written / 1.5 < stated < written * 1.5

    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"GB do not fit in .*activations, where 1e-06 GB are free: take fewer layers"):
        extract(cfg, [3])


class Widening(torch.nn.Module):
    """A block of a network: its output is its input with each number `times` over, in memory of its own."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.times, 2)


def test_a_pass_that_does_not_fit_in_memory_names_the_option_to_lower() -> None:
    block = Widening(1 << 50)
    backbone = Backbone(torch.nn.Sequential(block), [block], iter, lambda items: Batch({}))  # type: ignore[arg-type]
    tokens = TokenStream("m", "d", None, None, 0, None, 8, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"out of memory: .* a forward pass of 8 item\(s\).*: lower data.batch_size"):
        tokens.rows(backbone, Batch({"input": torch.zeros(8, 2, 4)}), [1])


@pytest.mark.parametrize(
    ("by_memory", "memory", "items"),
    [
        ({24: 1, 40: 2, 80: 4}, 23.65, 1),  # an L4 or A10G, sold as 24 GB
        ({40: 1, 80: 12}, 25.4, 1),
        ({24: 64, 40: 128}, 12.0, 32),
        ({24: 64, 40: 128, 80: 256}, 42.3, 128),
        ({24: 64, 40: 128, 80: 256}, 85.0, 256),
        ({24: 64}, None, 8),
        ({}, None, 8),
        ({}, 85.0, 21),
        ({}, 16.0, 8),
    ],
)
def test_items_of_a_pass_never_exceed_the_entry_of_a_larger_gpu(
    by_memory: dict[int, int], memory: float | None, items: int
) -> None:
    assert items_per_batch(None, by_memory, memory) == items
    assert items_per_batch(5, by_memory, memory) == 5


def test_text_leaves_the_size_of_a_batch_to_the_gpu() -> None:
    assert composed("model=hf", "name=x", "data=text").data.batch_size is None
