import re
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sae_outliers.data import dna, images
from sae_outliers.data.genome import Genome
from sae_outliers.utils.instantiate import instantiate
from tests.conftest import composed

needs_photographs = pytest.mark.skipif(
    find_spec("skimage") is None or find_spec("sklearn") is None, reason="the photographs are not installed"
)
EMBL = """ID   {0}; SV 1; linear; genomic DNA; STD; HUM; 70 BP.
XX
SQ   Sequence 70 BP; 20 A; 20 C; 20 G; 10 T; 0 other;
     acgtacgtac ggggggggga acgtacgtac ggggggggga acgtacgtac gggggggggc        60
     ttttttttta                                                               70
//
"""
SEQUENCE = "ACGTACGTACGGGGGGGGGA" * 2 + "ACGTACGTACGGGGGGGGGC" + "TTTTTTTTTA"


@pytest.fixture
def flat_file(tmp_path: Path) -> str:
    path = tmp_path / "two.dat"
    path.write_text(EMBL.format("AA000001") + EMBL.format("AA000002"))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Write two images whose pixels encode their position: red the column, green the row, blue the image."""
    row, column = np.mgrid[:60, :100].astype(np.uint8)
    for i in (0, 1):
        Image.fromarray(np.stack([column, row, np.full_like(row, i)], 2)).save(tmp_path / f"{i}.png")
    return str(tmp_path)


@needs_photographs
def test_packaged_photographs_are_there_and_turn_into_square_rgb_crops() -> None:
    source = images.Photographs()
    crops = list(islice(source(0), 19))
    assert len(source.files) == 19
    assert all(path.is_file() for path in source.files)
    assert {crop.mode for crop in crops} == {"RGB"}
    assert all(crop.width == crop.height >= 30 for crop in crops)
    assert min(np.asarray(crop).std() for crop in crops) > 1


def test_crops_repeat_with_the_seed_and_differ_without(folder: str) -> None:
    source = images.Photographs(folder, crops=3)

    def pixels(seed: int) -> list[bytes]:
        return [crop.tobytes() for crop in source(seed)]

    assert pixels(0) == pixels(0)
    assert pixels(0) != pixels(1)


def test_each_round_takes_every_photograph_and_crops_are_true_parts(folder: str) -> None:
    crops = [np.asarray(crop).astype(int) for crop in images.Photographs(folder, crops=40)(0)]
    assert [{a[0, 0, 2], b[0, 0, 2]} for a, b in zip(crops[::2], crops[1::2], strict=True)] == [{0, 1}] * 40
    assert all((np.diff(crop[..., 1], axis=0) == 1).all() for crop in crops)
    directions = Counter(int(np.diff(crop[..., 0], axis=1).flat[0]) for crop in crops)
    assert set(directions) == {-1, 1}
    sides = [len(crop) for crop in crops]
    assert min(sides) >= 18
    assert max(sides) <= 60
    assert max(sides) - min(sides) > 30


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image file"):
        images.Photographs(str(tmp_path))


def test_embl_records_are_read(flat_file: str) -> None:
    assert list(dna.read_embl(Path(flat_file))) == [("AA000001", SEQUENCE), ("AA000002", SEQUENCE)]


def test_pieces_cover_the_sequence_in_an_order_of_the_seed(flat_file: str) -> None:
    source = dna.HumanDna(piece=30, file=flat_file, records=["AA000002"])
    assert "".join(source.pieces) == SEQUENCE
    assert [len(piece) for piece in source.pieces] == [30, 30, 10]
    source = dna.HumanDna(piece=8, file=flat_file, records=None)
    assert Counter(source(0)) == Counter(source.pieces)
    assert list(source(0)) == list(source(0))
    assert list(source(0)) != list(source(1))


@pytest.mark.parametrize(("length", "expected"), [(30, 1), (31, 2), (70, 3), (10, 1), (3, 1), (50, 2)])
def test_overlapping_pieces_repeat_only_the_overlap(length: int, expected: int) -> None:
    sequence = SEQUENCE[:length]
    parts = dna.pieces(sequence, piece=30, overlap=10)
    assert len(parts) == expected
    assert parts[0] + "".join(part[10:] for part in parts[1:]) == sequence


def test_impossible_overlap_is_refused(flat_file: str) -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        dna.HumanDna(piece=10, overlap=10, file=flat_file)


def test_the_unpacked_package_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_OUTLIERS_CACHE", str(tmp_path))
    monkeypatch.setattr(dna, "HUM1", "no/such/hum1.dat")
    with pytest.raises(FileNotFoundError, match="run `make weights SPLICEAI=yes`"):
        dna.HumanDna(piece=10)
    unpacked = tmp_path / "emboss-test" / "no/such/hum1.dat"
    unpacked.parent.mkdir(parents=True)
    unpacked.touch()
    assert dna.human_dna_file() == unpacked


def test_human_dna_is_as_long_as_its_records_say() -> None:
    try:
        path = dna.human_dna_file()
    except FileNotFoundError:
        pytest.skip("emboss-test is not installed")
    stated = dict(re.findall(r"^ID   (\w+);.* (\d+) BP", path.read_text("latin-1"), re.M))
    sequences = {name: s for name, s in dna.read_embl(path) if name in dna.RECORDS}
    assert {name: len(s) for name, s in sequences.items()} == {name: int(stated[name]) for name in dna.RECORDS}
    assert set("".join(sequences.values())) == set("ACGT")


@pytest.mark.parametrize(
    ("model", "domain", "last_layer", "data"),
    [
        ("vit_s14", "vision", 12, "images"),
        ("efficientnet_lite0", "vision", 16, "images"),
        ("spliceai", "genomic", 16, "dna"),
    ],
)
def test_models_compose_with_the_data_of_their_domain(model: str, domain: str, last_layer: int, data: str) -> None:
    config = composed(f"model=offline/{model}")
    assert (config.model.name, config.model.domain, config.model.last_layer) == (model, domain, last_layer)
    assert config.data.name == data


def test_a_genome_takes_the_piece_and_overlap_of_a_models_config(tmp_path: Path) -> None:
    """The middles of the windows are the whole sequence but its margins, each base once, as for SpliceAI."""
    sequence = "".join(np.random.default_rng(0).choice(list("ACGT"), 997))
    lines = "\n".join(sequence[i : i + 60] for i in range(0, 997, 60))
    (tmp_path / "g.fa").write_text(f">chr\n{lines}\n")
    windows = set(Genome(files=str(tmp_path / "g.fa"), window=8192, shortest=1, piece=100, overlap=40)(0))
    assert windows == {sequence[start : start + 100] for start in range(0, 997 - 40, 60)}
    source = composed("model=offline/spliceai", "data=genome", f"data.source.files={tmp_path}/g.fa").data.source
    assert instantiate(source).piece == 15000
