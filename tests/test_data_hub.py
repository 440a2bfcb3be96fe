"""Datasets of the hub, read from local copies with the same layout through the same code."""

import gzip
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from PIL import Image

from sae_outliers.data.genome import HubGenome
from sae_outliers.data.hub import HubColumn
from sae_outliers.data.images import HubImages
from sae_outliers.data.omg import Contigs, contig
from sae_outliers.data.protein import HubProteins
from tests.conftest import composed

TEXTS = [f"text {i}" for i in range(200)]
ROW: dict[str, Any] = {
    "CDS_seqs": ["MALTK", "mlgid", "MATIK"],
    "IGS_seqs": ["<sep>", "AATTT", "TTnTA", "", "GGCC"],
    "CDS_position_ids": [2, 4, 7],
    "IGS_position_ids": [0, 1, 3, 5, 6],
    "CDS_orientations": [True, False, True],
    "CDS_ids": ["a|CDS|+|1:15", "b|CDS|-|20:35", "c|CDS|+|50:65"],
    "IGS_ids": ["SEP", "a|IG", "b|IG", "c|IG", "d|IG"],
}
CONTIG = "<+>MALTK<->MLGID<+>ggcc<+>MATIK"


def parquet(folder: Path, columns: dict[str, list[Any]], files: int = 4) -> str:
    """Write a dataset in the hub's layout: parquet files with several row groups."""
    (folder / "data").mkdir(parents=True)
    for part in range(files):
        table = pa.table({name: values[part::files] for name, values in columns.items()})
        pq.write_table(table, folder / "data" / f"train-{part:05}-of-{files:05}.parquet", row_group_size=10)
    return str(folder)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return parquet(tmp_path / "texts", {"id": list(range(200)), "text": TEXTS})


@pytest.fixture(autouse=True)
def without_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the 5 s that `datasets` waits after a stream of several parquet files because of older Arrow releases."""
    from datasets import config

    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_a_seed_fixes_the_order_across_processes(texts: str) -> None:
    source = HubColumn(dataset=texts, buffer=20)
    code = (
        "from datasets import config; config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0; from sae_outliers.data.hub import *; "
        "import sys; print(*HubColumn(dataset=sys.argv[1], buffer=20)(3), sep='|')"
    )
    other = subprocess.run([sys.executable, "-c", code, texts], capture_output=True, text=True, check=True)
    assert other.stdout.strip().split("|") == list(source(3)) != list(source(4))
    assert Counter(source(3)) == Counter(source(4)) == Counter(TEXTS)


def test_the_seed_orders_the_files_too(texts: str) -> None:
    """The buffer is a tenth of the rows, so that with a fixed file order the same file would always come first."""
    first = [int(next(HubColumn(dataset=texts, buffer=20)(seed)).split()[1]) % 4 for seed in range(12)]
    assert len(set(first)) > 2


def test_a_dataset_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The file's last rows are damaged: the first are read, and the damage is reported when it is reached."""
    columns = {"text": [f"{i} {np.random.default_rng(i).bytes(400).hex()}" for i in range(400)]}
    file = Path(parquet(tmp_path / "d", columns, files=1)) / "data" / "train-00000-of-00001.parquet"
    start = pq.ParquetFile(file).metadata.row_group(38).column(0).dictionary_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 8000] = b"\xff" * 8000
    file.write_bytes(content)
    documents = HubColumn(dataset=str(tmp_path / "d"), buffer=30)(0)
    assert len(list(islice(documents, 100))) == 100  # pyarrow reads up to 16 row groups ahead
    with pytest.raises(ValueError, match=r"the dataset .*/d cannot be read any further: "):
        list(documents)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_a_folder_may_hold_jsonl(tmp_path: Path, name: str) -> None:
    rows = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
    (tmp_path / name).write_bytes(gzip.compress(rows) if name.endswith("gz") else rows)
    assert Counter(HubColumn(dataset=str(tmp_path))(0)) == Counter(TEXTS)
    with pytest.raises(ValueError, match=r"has no column body: it has \['id', 'text'\]"):
        HubColumn(dataset=str(tmp_path), column="body")(0)


def test_rows_without_a_value_are_left_out(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "d", {"text": ["a", None, "", "b"]}, files=1)
    assert sorted(HubColumn(dataset=folder)(0)) == ["a", "b"]


def test_what_is_wrong_with_a_dataset_is_said(tmp_path: Path, texts: str) -> None:
    empty = parquet(tmp_path / "empty", {"text": pa.array([], pa.string())}, files=1)
    (tmp_path / "nothing").mkdir()
    for source, message in [
        (HubColumn(dataset=texts, column="body"), r"has no column body: it has \['id', 'text'\]"),
        (HubColumn(dataset=texts, split="test"), "cannot be opened: .*test"),
        (HubColumn(dataset=texts, config="other"), "cannot be opened: .*other"),
        (HubColumn(dataset=empty), "empty (has no rows in its split train|cannot be read any further)"),
        (HubColumn(dataset=str(tmp_path / "nothing")), "nothing cannot be opened: "),
    ]:
        with pytest.raises(ValueError, match=message):
            list(source(0))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/none"):
        HubColumn(dataset=str(tmp_path / "none"))(0)


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_the_hub_one_sentence_says_so_at_once(offline: str) -> None:
    """Offline because of HF_HUB_OFFLINE, or because nothing answers at the hub's address."""
    code = "from sae_outliers.data.hub import HubColumn; HubColumn(dataset='someone/something')(0)"
    start = time.monotonic()
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    message = failed.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "FileNotFoundError: the dataset someone/something cannot be reached on the Hugging Face hub ("
    )
    assert message.endswith("or files of your own by data=text_files, fasta, genome or image_folder")
    assert time.monotonic() - start < 15


def test_proteins_of_a_dataset_are_cleaned(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "d", {"sequence": ["mkvl*", "MK", "AC-DE", "ACDEF"]}, files=1)
    assert sorted(HubProteins(dataset=folder, shortest=4)(0)) == ["ACDE", "ACDEF", "MKVL"]
    wrong = parquet(tmp_path / "e", {"sequence": ["MK1"]}, files=1)
    with pytest.raises(ValueError, match=r"a row of .*e has the letter '1', which is not a residue"):
        list(HubProteins(dataset=wrong)(0))


def test_sequences_of_a_dataset_are_cut_into_windows_that_are_shuffled(tmp_path: Path) -> None:
    sequences = ["".join(np.random.default_rng(i).choice(list("ACGT"), 950)) for i in range(8)]
    folder = parquet(
        tmp_path / "d", {"text": [f"{s[:500]}NNN{s[500:].lower()}" for s in sequences], "record": ["r"] * 8}
    )
    source = HubGenome(dataset=folder, window=100, shortest=100, buffer=2)
    windows = list(source(0))
    assert windows == list(source(0)) != list(source(1))
    expected = [
        part[i : i + 100] for s in sequences for part in (s[:500], s[500:]) for i in range(0, len(part) - 99, 100)
    ]
    assert Counter(windows) == Counter(source(1)) == Counter(expected)
    first = {next(i for i, s in enumerate(sequences) if window in s) for window in windows[:9]}
    assert len(first) > 3  # nine windows of one row lie together before they are shuffled
    with pytest.raises(ValueError, match=r"no window in .*/d has 600 bases or more"):
        list(HubGenome(dataset=folder, window=600, shortest=600)(0))


def test_a_contig_is_written_as_glm2_reads_it(tmp_path: Path) -> None:
    assert contig(ROW | {"IGS_seqs": ["<sep>", "AATTT", "ttta", "A", "GGCC"]}) == (
        "<+>aattt<+>MALTK<+>ttta<->MLGID<+>a<+>ggcc<+>MATIK"
    )
    other = {name: [] if name.startswith("IGS") else values[:1] for name, values in ROW.items()}
    rows = [ROW, other, {name: [] for name in ROW}]
    without = ROW | {"IGS_seqs": ["<sep>", "NNNNN", *ROW["IGS_seqs"][2:]]}
    assert contig(without) == CONTIG
    schema = pa.schema({
        **dict.fromkeys(("CDS_position_ids", "IGS_position_ids"), pa.list_(pa.int32())),
        **dict.fromkeys(("CDS_seqs", "IGS_seqs"), pa.list_(pa.large_string())),
        **dict.fromkeys(("CDS_ids", "IGS_ids"), pa.list_(pa.string())), "CDS_orientations": pa.list_(pa.bool_()),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pylist([*rows, without], schema), tmp_path / "train.parquet")
    assert sorted(Contigs(dataset=str(tmp_path))(0)) == sorted([contig(ROW), "<+>MALTK", CONTIG])
    with pytest.raises(ValueError, match="has no column CDS_orientations"):
        Contigs(dataset=parquet(tmp_path / "d", {name: [v] for name, v in ROW.items() if "orient" not in name}, 1))(0)
    with pytest.raises(ValueError, match="not in OMG's layout, its lists have different lengths"):
        contig(ROW | {"CDS_orientations": [True]})


def test_images_of_a_dataset_come_whole_and_broken_ones_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 30, 3), dtype=np.uint8)
    files = [png(Image.fromarray(image)) for image in pixels]
    files += [b"no image", png(Image.new("L", (9, 9), 7)), png(Image.new("RGBA", (8, 8)))]
    values = [{"bytes": content, "path": None} for content in files]
    folder = parquet(tmp_path / "d", {"image": values, "label": list(range(33))}, files=3)
    source = HubImages(dataset=folder, buffer=10)
    with caplog.at_level(logging.WARNING):
        images = list(source(0))
    assert {image.mode for image in images} == {"RGB"}
    assert Counter(image.size for image in images) == {(30, 20): 30, (9, 9): 1, (8, 8): 1}
    assert {image.tobytes() for image in images} > {image.tobytes() for image in pixels}
    assert [image.tobytes() for image in images] == [image.tobytes() for image in source(0)]
    assert [image.tobytes() for image in images] != [image.tobytes() for image in source(1)]
    assert all(f"of {folder} is skipped because it cannot be read" in message for message in caplog.messages)
    assert caplog.messages
    with pytest.raises(ValueError, match="the column contains int, not images"):
        HubImages(dataset=folder, column="label")(0)


def test_images_declared_as_such_are_not_decoded_before_their_turn(tmp_path: Path) -> None:
    """Datasets on the hub declare the column's type in their files."""
    import datasets

    images = [Image.new("RGB", (5 + i, 5), (i, 0, 0)) for i in range(12)]
    dataset = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    assert sorted(image.width for image in HubImages(dataset=str(tmp_path))(0)) == list(range(5, 17))


SOURCES: dict[str, Callable[[Path], str]] = {
    "fineweb": lambda folder: parquet(folder, {"text": TEXTS, "url": TEXTS}),
    "prompts": lambda folder: parquet(folder, {"caption": TEXTS, "image_url": TEXTS}),
    "uniref50": lambda folder: parquet(folder, {"sequence": ["ACDEFGHIK" * 5] * 5}),
    "open_genome": lambda folder: parquet(folder, {"text": ["ACGT" * 300] * 5, "record": TEXTS[:5]}),
    "omg": lambda folder: parquet(folder, {name: [value] * 3 for name, value in ROW.items()}, files=1),
    "imagenet": lambda folder: parquet(
        folder, {"image": [{"bytes": png(Image.new("L", (3, 3))), "path": "a"}]}, files=1
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_each_config_reads_a_copy_in_its_datasets_layout(tmp_path: Path, name: str) -> None:
    folder = SOURCES[name](tmp_path / name)
    config = composed(f"data={name}", f"data.source.dataset={folder}", "data.source.config=null").data
    assert config.name == name
    documents: Iterator[Any] = instantiate(config.source)(0)
    assert type(next(documents)) in (str, Image.Image)
