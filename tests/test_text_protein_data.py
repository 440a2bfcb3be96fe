"""Text and protein sources: their content, and their order for a seed."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from hydra.utils import instantiate

from sae_outliers.data import protein, text
from sae_outliers.data.protein import Germlines, Proteins
from sae_outliers.data.text import PackagedText
from tests.conftest import composed, needs

AMINO_ACIDS = set("ACDEFGHIKLMNPQRSTVWY")


SOURCES = [
    pytest.param(PackagedText(), id="topics"),
    pytest.param(Germlines(), id="germlines", marks=[needs("anarci"), pytest.mark.weights]),
    pytest.param(Proteins(), id="proteins", marks=[needs("pyhmmer"), pytest.mark.weights]),
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_fixes_the_order_and_only_the_order(source: Callable[[int], Iterator[str]]) -> None:
    first, again, other = list(source(0)), list(source(0)), list(source(1))
    assert first == again
    assert first != other
    assert Counter(first) == Counter(other)


def test_the_first_passages_come_from_all_over_the_corpus() -> None:
    corpus = "\n".join(text.texts("topics"))
    places = [corpus.index(passage) / len(corpus) for passage in islice(PackagedText()(0), 60)]
    tenths = {int(10 * place) for place in places}
    assert len(tenths) == 10


def test_passages_lose_no_text_and_keep_to_their_size() -> None:
    paragraphs = [f"paragraph {i} " + "x" * (i % 50) for i in range(100)]
    parts = list(text.passages("\n\n".join(paragraphs), size=200))
    assert "\n\n".join(parts) == "\n\n".join(paragraphs)
    assert max(map(len, parts)) <= 202
    assert min(map(len, parts[:-1])) > 100


def test_docstrings_are_read_without_running_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Module."""\nraise SystemExit\ndef f():\n    """Function."""\n')
    (tmp_path / "broken.py").write_text('"""Not Python."""\ndef\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.py").write_text('"""A test."""\n')
    assert list(text.docstrings(tmp_path)) == ["Module.\n\nFunction."]


def test_what_has_docstrings_comes_in_the_order_of_a_walk_through_all_of_the_code() -> None:
    inner = "class A:\n  def a(self):\n   return lambda: 1\n  async def b(self): pass\n"
    indented = inner.replace("\n", "\n ")
    tree = ast.parse(
        f"if 1:\n {indented}\nelse:\n {indented}\nfor x in []:\n {indented}\nwith x:\n {indented}\n{inner}"
        f"try:\n {indented}\nexcept X:\n {indented}\nelse:\n {indented}\nfinally:\n {indented}\n"
        f"match 1:\n case 1:\n  {inner.replace(chr(10), chr(10) + '  ')}\n"
    )
    walked = [node for node in ast.walk(tree) if isinstance(node, text.Documented)]
    assert len(walked) == 1 + 10 * 3
    assert list(text.definitions(tree)) == walked


def test_unknown_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="topics and docstrings"):
        next(PackagedText(("novels",))(0))


def test_germlines_are_a_literal_and_v_meets_every_j_of_its_species(tmp_path: Path) -> None:
    genes = {"V": {"H": {"human": {"V1": "QV-", "V2": "EV-", "V3": "LV-"}, "rat": {"V1": "AAA"}}}}
    genes["J"] = {"H": {"human": {"J1": "--W", "J2": "--F"}}}
    file = tmp_path / "germlines.py"
    file.write_text(f"raise_if_run = 1 / 0\nall_germlines = {genes}\n")
    assert list(protein.joined(protein.read_germlines(file), "H")) == ["QVW", "EVF", "LVW"]


@pytest.mark.weights
@needs("anarci")
def test_germlines_are_variable_regions_enough_for_a_short_run() -> None:
    heavy, light = (list(Germlines((chain,))(0)) for chain in ("heavy", "light"))
    assert set("".join(heavy + light)) == AMINO_ACIDS
    assert all(100 <= len(sequence) <= 120 and sequence.count("C") >= 1 for sequence in heavy + light)
    assert sum("WG" in sequence[-14:] for sequence in heavy) > 0.9 * len(heavy)
    assert sum("FG" in sequence[-14:] for sequence in light) > 0.9 * len(light)
    assert sum(map(len, heavy)) > 80_000


@pytest.mark.weights
@needs("pyhmmer")
def test_proteins_are_a_genome() -> None:
    sequences = list(Proteins()(0))
    assert len(sequences) > 2000
    assert sum(map(len, sequences)) > 600_000
    assert set("".join(sequences)) <= AMINO_ACIDS | {"X"}


@pytest.mark.parametrize("model", ["smollm2", "minilm", "antiberty", "sapiens"])
def test_each_model_composes_with_data_of_its_domain(model: str) -> None:
    config = composed(f"model=offline/{model}", "tracker=wandb")
    assert config.model.name == model
    assert (config.data.name == "text") == (config.model.domain == "language")
    assert callable(instantiate(config.data.source))
