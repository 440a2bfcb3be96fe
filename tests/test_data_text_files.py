"""Text in local files, through the package `datasets`."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_outliers.data.base import matching_files
from sae_outliers.data.text_files import KINDS, TextFiles, joined
from sae_outliers.utils.chat import Chat

PARAGRAPHS = [f"Paragraph {i} begins\nand goes on {'word ' * (i % 9)}" for i in range(60)]
TEXTS = [f"text {i}" for i in range(40)]


def write(path: Path, text: str) -> str:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def jsonl(texts: list[str], column: str = "text") -> str:
    return "".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_are_joined_into_passages_that_lose_nothing(tmp_path: Path, name: str) -> None:
    source = TextFiles(write(tmp_path / name, "\n\n".join(PARAGRAPHS)), passage=100)
    passages = list(source(0))
    assert Counter(" ".join(passages).split()) == Counter(" ".join(PARAGRAPHS).split())
    assert all(passage.startswith("Paragraph") for passage in passages)  # the cut is at blank lines
    assert sorted(map(len, passages))[1] >= 90  # all but what is left at the end
    assert max(map(len, passages)) <= 200


def test_without_blank_lines_a_passage_has_at_most_twice_its_size_and_a_line() -> None:
    lines = [f"line {i:03}" for i in range(100)]
    passages = list(joined(lines, 40))
    assert "\n".join(passages).split("\n") == lines
    assert max(map(len, passages)) <= 80 + len(lines[0])
    assert list(joined(["word " * 50, "next"], 40)) == [("word " * 50).strip(), "next"]


def test_each_line_is_a_prompt_where_that_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.txt", "a cat\r\n\r\na dog\n  \na house")
    assert sorted(TextFiles(file, passage=None)(0)) == ["a cat", "a dog", "a house"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_row_is_a_document_whole(tmp_path: Path, name: str) -> None:
    texts = [*TEXTS, "\n\n".join(PARAGRAPHS)]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    else:
        write(tmp_path / name, jsonl(texts))
    assert sorted(TextFiles(str(tmp_path))(0)) == sorted(texts)


def test_a_seed_fixes_the_order_across_processes(tmp_path: Path) -> None:
    for part in range(4):
        write(tmp_path / f"{part}.jsonl", jsonl([f"{part} {text}" for text in TEXTS]))
    source = TextFiles(str(tmp_path), buffer=30)
    code = (
        "from sae_outliers.data.text_files import *; import sys; print(*TextFiles(sys.argv[1], buffer=30)(3), sep='|')"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip().split("|") == list(source(3)) != list(source(4))
    assert Counter(source(3)) == Counter(source(4))


def test_files_are_opened_one_by_one(tmp_path: Path) -> None:
    """The first documents are read although the last file is damaged, which is reported when it is reached."""
    for part in range(4):
        write(tmp_path / f"{part}.jsonl", jsonl(TEXTS))
    last = matching_files(str(tmp_path), KINDS, seed=0)[-1]
    write(last, "{broken")
    stream = TextFiles(str(tmp_path), buffer=5)(0)
    assert len(list(islice(stream, 3 * len(TEXTS) - 5))) == 115
    with pytest.raises(ValueError, match=rf"{last.name} cannot be read \("):
        list(stream)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    cases = {
        write(tmp_path / "a.jsonl", jsonl(TEXTS, "body")): r"a\.jsonl has no column text: it has body, id",
        write(tmp_path / "empty.txt", ""): r"there is no text in .*empty\.txt",
        write(tmp_path / "blank.txt", "\n \n"): r"there is no text in .*blank\.txt",
        write(tmp_path / "a.doc", "x"): r"a\.doc is not a supported text file: use \.txt",
        write(tmp_path / "broken.parquet", "PAR1"): r"broken\.parquet cannot be read \(",
    }
    (tmp_path / "latin.txt").write_bytes("Übergröße".encode("latin-1"))
    (tmp_path / "short.txt.gz").write_bytes(gzip.compress(b"words " * 999)[:-20])
    cases |= {
        str(tmp_path / "latin.txt"): r"latin\.txt cannot be read .* say data\.source\.encoding=latin-1 or utf-16",
        str(tmp_path / "short.txt.gz"): "cannot be read",
    }
    for file, message in cases.items():
        with pytest.raises(ValueError, match=message):
            list(TextFiles(file)(0))
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.txt"):
        TextFiles(str(tmp_path / "none.txt"))(0)


CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@pytest.mark.parametrize(("rows", "message"), [
    ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, r"holds 3 token ids, but its attention_mask \(2,\)"),
    ({"input_ids": [[1.5]]}, r"row 1, column input_ids, holds list, not text"),
    ({"text": ["a", None], "id": [3, 4]}, None),
    ({"text": [3.5]}, r"row 1, column text, holds float, not text: name a column of text by data\.source\.column="),
    ({"text": [{"body": "x"}]}, r"row 1, column text, holds a struct"),
    ({"text": [b"x"]}, r"row 1, column text, holds bytes"),
    ({"messages": [[{"who": "a"}]]}, r"lack a role or content: they have who"),
])  # fmt: skip
def test_columns_that_are_no_text_are_named_with_their_row_and_type(
    rows: dict[str, list], message: str | None, tmp_path: Path
) -> None:
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    source = TextFiles(str(tmp_path / "a.parquet"))
    if message is None:
        assert list(source(0)) == ["a"]
        return
    with pytest.raises(ValueError, match=r"a\.parquet, " + message if "row" in message else message):
        list(source(0))


@pytest.mark.parametrize("row", [
    {"messages": CHAT},
    {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
])  # fmt: skip
def test_chats_are_read_turn_by_turn(row: dict[str, list], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    (chat,) = TextFiles(str(tmp_path))(0)
    assert chat == "user: Hello\n\nassistant: Hi"
    assert isinstance(chat, Chat)
    assert chat.turns == CHAT


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow"])
def test_token_ids_are_read_without_their_padding(suffix: str, tmp_path: Path) -> None:
    rows = {"input_ids": [[5, 6, 7, 0], [8, 9, 0, 0]], "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0]], "id": [1, 2]}
    path = tmp_path / f"a.{suffix}"
    table = pa.table(rows)
    match suffix:
        case "jsonl":
            write(path, "".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        case "parquet":
            pq.write_table(table, path)
        case "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    assert sorted(map(list, TextFiles(str(path))(0))) == [[5, 6, 7], [8, 9]]


def test_tables_and_encodings_are_read_as_they_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'text,id\n"one, two",1\nthree,2\n')
    write(tmp_path / "b.tsv", "body\tid\nfour\t1\n")
    assert sorted(TextFiles(str(tmp_path / "a.csv"))(0)) == ["one, two", "three"]
    assert list(TextFiles(str(tmp_path / "b.tsv"), column="body")(0)) == ["four"]
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "c.txt").write_bytes("Übergröße".encode(encoding))
        assert list(TextFiles(str(tmp_path / "c.txt"), encoding=encoding)(0)) == ["Übergröße"]
