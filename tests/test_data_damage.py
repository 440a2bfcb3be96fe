"""Damaged files: whatever a reader meets, it raises ValueError or FileNotFoundError with the file's name."""

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sae_outliers.data.arrays import StoredArrays
from sae_outliers.data.genome import Genome
from sae_outliers.data.images import ImageFolder
from sae_outliers.data.protein import Proteins
from sae_outliers.data.text_files import TextFiles

ARRAY = np.random.default_rng(0).normal(3, 1, (40, 6)).astype(np.float32)
TABLE = arrow.table({"acts": list(ARRAY)})
TEXTS = [f"text number {i}" for i in range(20)]


def hdf5(path: Path) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["acts"] = ARRAY


def stream(path: Path) -> None:
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, TABLE.schema) as to:
        to.write_table(TABLE)


def fasta(letters: str) -> str:
    rng = random.Random(0)
    return "".join(f">{i}\n{''.join(rng.choices(letters, k=1500))}\n" for i in range(3))


ARRAYS: dict[str, Callable[[Path], Any]] = {
    "a.npy": lambda path: np.save(path, ARRAY),
    "a.npz": lambda path: np.savez_compressed(path, acts=ARRAY),
    "a.safetensors": lambda path: save_file({"acts": torch.from_numpy(ARRAY)}, path),
    "a.parquet": lambda path: parquet.write_table(TABLE, path),
    "a.arrow": stream,
    "a.pt": lambda path: torch.save({"acts": torch.from_numpy(ARRAY)}, path),
    "a.h5": hdf5,
}
OTHERS: dict[str, Callable[[Path], Any]] = {
    "t.jsonl": lambda path: path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS)),
    "t.txt.gz": lambda path: path.write_bytes(gzip.compress("\n\n".join(TEXTS).encode())),
    "t.parquet": lambda path: parquet.write_table(arrow.table({"text": TEXTS}), path),
    "t.csv": lambda path: path.write_text("text\n" + "\n".join(TEXTS)),
    "p.fasta.gz": lambda path: path.write_bytes(gzip.compress(fasta("ACDEFGHIKLMNPQRSTVWY").encode())),
    "g.fa": lambda path: path.write_text(fasta("ACGT")),
    "i.png": lambda path: Image.fromarray(np.uint8(ARRAY * 40)).save(path),
    "i.tif": lambda path: Image.fromarray(np.uint16(ARRAY * 999)).save(path),
}


def opened(path: Path) -> Iterator[Any]:
    if path.name in ARRAYS:
        return StoredArrays(str(path))(0)
    sources: dict[str, Callable[[], Iterator[Any]]] = {
        "t": lambda: TextFiles(str(path))(0),
        "p": lambda: Proteins(files=str(path))(0),
        "g": lambda: Genome(files=str(path), window=500, shortest=100)(0),
        "i": lambda: ImageFolder(str(path.parent))(0),
    }
    return sources[path.name[0]]()


def damaged(content: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Yield `count` cut versions of a file, as many with flipped bytes, and some that are something else."""
    for _ in range(count):
        yield content[: rng.randrange(len(content))]
    for _ in range(count):
        changed = bytearray(content)
        # headers and footers are where a reader believes what it reads
        for _ in range(rng.choice([1, 3, 20])):
            place = rng.choice(
                [rng.randrange(len(changed)), rng.randrange(min(200, len(changed))), -1 - rng.randrange(60)]
            )
            changed[place] = rng.randrange(256)
        yield bytes(changed)
    archive = io.BytesIO()
    np.savez(archive, acts=np.array([{"a": 1}], dtype=object))
    yield from (
        b"",
        b"\0" * 300,
        b"PK\x03\x04",
        b"{}",
        archive.getvalue(),
        bytes(rng.randrange(256) for _ in range(300)),
    )


def outcomes(path: Path, write: Callable[[Path], Any], count: int) -> Iterator[str]:
    """Yield what is wrong with each refusal of a damaged file: nothing, hopefully."""
    write(path)
    assert list(islice(opened(path), 1)), "the file is good before it is damaged"
    rng = random.Random(path.name)
    for number, content in enumerate(damaged(path.read_bytes(), rng, count)):
        path.write_bytes(content)
        try:
            list(islice(opened(path), 50))
        except (ValueError, FileNotFoundError) as error:
            if str(path if path.name[0] != "i" else path.parent) not in str(error):
                yield f"{number}: no file in {error!r}"
        except Exception as error:  # what a traceback would be made of
            yield f"{number}: {error!r}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about tags that are cut
@pytest.mark.parametrize("name", [*ARRAYS, *OTHERS])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    assert list(outcomes(tmp_path / name, (ARRAYS | OTHERS)[name], {"t": 3, "i": 8}.get(name[0], 30))) == []
