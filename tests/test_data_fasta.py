"""FASTA files: proteins by record, genomes by window."""

import gzip
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from sae_outliers.data import fasta
from sae_outliers.data.genome import DnaWindows, Genome
from sae_outliers.data.protein import Proteins

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
random_letters = random.Random(0)


def letters(alphabet: str, n: int) -> str:
    return "".join(random_letters.choices(alphabet, k=n))


def wrapped(sequences: list[str], width: int = 60) -> bytes:
    lines = [f">s{i} of some organism\n" + "".join(f"{s[j : j + width]}\n" for j in range(0, len(s), width))
             for i, s in enumerate(sequences)]  # fmt: skip
    return "".join(lines).encode()


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


PROTEINS = [letters(RESIDUES, n) for n in range(1, 200)]


@pytest.mark.parametrize("name", ["a.fasta", "a.faa.gz"])
@pytest.mark.parametrize("width", [60, 100_000])
def test_records_are_read_whole_whatever_their_lines(tmp_path: Path, name: str, width: int) -> None:
    long = letters(RESIDUES, 30_000)  # more than is read of a line at once
    write(tmp_path / name, wrapped([*PROTEINS, long], width))
    records = {name: b"".join(lines).decode() for name, lines in fasta.read_fasta(tmp_path / name)}
    assert records == {f"s{i}": sequence for i, sequence in enumerate([*PROTEINS, long])}


def test_line_ends_blank_lines_empty_records_and_long_headers(tmp_path: Path) -> None:
    header = b">second " + b"of a long name " * 1000
    path = Path(write(tmp_path / "a.fa", b"\r\n\n>empty\n>first x\r\nAC\r\n\r\nDE\r\n" + header + b"\nFG\n>\nHI"))
    records = [(name, b"".join(lines)) for name, lines in fasta.read_fasta(path)]
    assert records == [("first", b"ACDE"), ("second", b"FG"), ("without a name", b"HI")]


def test_a_record_that_is_not_read_is_skipped(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.fa", wrapped(PROTEINS)))
    assert [name for name, _ in fasta.read_fasta(path)] == [f"s{i}" for i in range(len(PROTEINS))]


def test_several_gz_members_are_one_file(tmp_path: Path) -> None:
    """bgzip writes such files."""
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(b">a\nAC") + gzip.compress(b"DE\n>b\nFG"))
    assert [b"".join(lines) for _, lines in fasta.read_fasta(tmp_path / "a.fa.gz")] == [b"ACDE", b"FG"]


def test_proteins_are_upper_case_distinct_and_long_enough(tmp_path: Path) -> None:
    write(tmp_path / "a.faa", b">a\nmk-v.l*\n>b\nMKVL\n>c\nMKV\n>d\n-\n>e\nMXBZUOJ\n")
    assert sorted(Proteins(files=str(tmp_path), shortest=4)(0)) == ["MKVL", "MXBZUOJ"]
    assert sorted(Proteins(files=str(tmp_path))(0)) == ["MKV", "MKVL", "MXBZUOJ"]


def test_proteins_come_in_the_order_of_the_seed(tmp_path: Path) -> None:
    for part in range(4):
        write(tmp_path / f"{part}.fasta.gz", wrapped(PROTEINS[part::4]))
    source = Proteins(files=str(tmp_path), buffer=20)
    assert list(source(0)) == list(source(0)) != list(source(1))
    assert Counter(source(0)) == Counter(source(1)) == Counter(PROTEINS)
    assert 60 < len(list(Proteins(files=str(tmp_path), share=0.5)(0))) < 140


@pytest.mark.parametrize("source", [Proteins, Genome])
def test_a_file_is_not_read_to_its_end_before_the_first_document(tmp_path: Path, source: type) -> None:
    """The file is damaged at its end: earlier documents are read, and the damage is reported when it is reached."""
    file = tmp_path / "a.fa.gz"
    file.write_bytes(gzip.compress(wrapped([letters("ACGT", 5000) for _ in range(100)]))[:-5000])
    options = {"window": 5000} if source is Genome else {}
    documents = source(files=str(file), buffer=10, **options)(0)
    assert len(list(islice(documents, 50))) == 50
    with pytest.raises(ValueError, match=r"a\.fa\.gz is damaged: "):
        list(documents)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "there is no protein of 1 residues in"),
    (b"MKVLA\n", r"a\.fa is not a FASTA file: it does not begin with >"),
    (b">a\nMKV1A\n", r"a\.fa, record a, has the letter '1', which is not a residue"),
    ("> a\nMKVÄ\n".encode(), "which is not a residue"),
])  # fmt: skip
def test_what_is_no_protein_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(Proteins(files=write(tmp_path / "a.fa", content))(0))


def naive_windows(sequence: str, window: int, shortest: int, max_n: float, glm2: bool) -> list[str]:
    """Return the windows of a complete sequence of A, C, G, T and N, letter by letter."""
    stretches = [""]
    for i, base in enumerate(sequence):
        gap = base == "N" and (glm2 or "N" in (sequence[max(i - 1, 0) : i], sequence[i + 1 : i + 2]))
        stretches = [*stretches, ""] if gap else [*stretches[:-1], stretches[-1] + base]
    found = []
    for stretch in stretches:
        for start in range(0, len(stretch), window):
            part = stretch[start : start + window].strip("N")
            if len(part) >= shortest and part.count("N") <= max_n * len(part):
                found.append(f"<+>{part.lower()}" if glm2 else part)
    return found


@pytest.mark.parametrize("glm2", [False, True])
@pytest.mark.parametrize("soft_masked", ["keep", "drop"])
@pytest.mark.parametrize("width", [7, 61, 1_000_000])
def test_windows_are_those_of_the_sequence_as_a_whole(
    width: int, soft_masked: str, glm2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_outliers.data.genome.LINES_AT_ONCE", 3)
    rng = random.Random(width)
    cut = DnaWindows(window=50, shortest=20, max_n=0.05, soft_masked=soft_masked, glm2=glm2)
    for _ in range(20):
        runs = rng.choices(["ACGT", "acgt", "N", "ACGTN", "acgtr", "ACGTACGTACGTR"], [6, 2, 2, 1, 1, 3], k=12)
        genome = "".join("".join(rng.choices(run, k=rng.randrange(1, 120))) for run in runs)
        pieces = [genome[i : i + width].encode() for i in range(0, len(genome), width)]
        plain = "".join("N" if soft_masked == "drop" and b.islower() else b.upper() for b in genome).replace("R", "N")
        assert list(cut.cut(pieces, "here")) == naive_windows(plain, 50, 20, 0.05, glm2)


def test_runs_of_n_never_reach_the_model_and_single_ones_stay() -> None:
    cut = DnaWindows(window=100, shortest=5, max_n=0.2)
    assert list(cut.cut([b"NNNACGTACGNN", b"NNTTTTNTTTTN", b"N"], "here")) == ["ACGTACG", "TTTTNTTTT"]
    assert list(DnaWindows(window=100, shortest=5, max_n=0.0).cut([b"TTTTNTTTT"], "here")) == []


def test_contigs_are_not_joined_and_every_base_is_in_one_window(tmp_path: Path) -> None:
    contigs = [letters("ACGT", n) for n in (5000, 999, 1234, 30_000)]
    for i, contig in enumerate(contigs):
        write(tmp_path / f"{i}.fna.gz", wrapped([contig], 80))
    source = Genome(files=str(tmp_path), window=1000, shortest=1, buffer=15)
    windows = list(source(0))
    assert windows == list(source(0)) != list(source(1))
    assert sum(map(len, windows)) == sum(map(len, contigs))
    expected = Counter(contig[i : i + 1000] for contig in contigs for i in range(0, len(contig), 1000))
    assert Counter(windows) == Counter(source(1)) == expected


def test_memory_holds_a_window_and_not_the_genome(tmp_path: Path) -> None:
    """A chromosome of 20 Mb on one line is cut into windows with a fraction of that in memory."""
    import tracemalloc

    def chunks() -> Iterator[bytes]:
        yield b">chr1\n"
        for _ in range(200):
            yield b"ACGT" * 25_000

    with gzip.open(tmp_path / "a.fa.gz", "wb", compresslevel=1) as file:
        file.writelines(chunks())
    tracemalloc.start()
    windows = sum(1 for _ in Genome(files=str(tmp_path), window=8192, buffer=20)(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert windows == 20_000_000 // 8192 + 1
    assert peak < 6_000_000


@pytest.mark.parametrize(("content", "options", "message"), [
    (b">p\nACGTMKVLE\n", {}, r"a\.fa, record p, has the letter 'L', which is not a base \(proteins: data=fasta\)"),
    (b">p\n" + b"ACGT" * 9, {}, r"no window in .*a\.fa has 1000 bases or more and a fraction of N up to 0.01: change"),
    (b"", {}, r"no window in .*a\.fa has 1000 bases"),
    (b">p\nACGT\n", {"soft_masked": "maybe"}, "soft_masked=maybe does not exist: use keep or drop"),
    (b">p\nACGT\n", {"window": 0}, "window=0 must be at least 1 base"),
])  # fmt: skip
def test_what_is_no_genome_is_refused(tmp_path: Path, content: bytes, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(Genome(files=write(tmp_path / "a.fa", content), **{"window": 100, **options})(0))  # type: ignore[arg-type]
