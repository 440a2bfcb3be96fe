"""Stored activations: every file type is compared with the array that was written, and measured end to end."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from safetensors.torch import save_file

from sae_outliers.activations.capture import capture
from sae_outliers.data.arrays import ROWS_PER_DOCUMENT, AlphaFold3Outputs, StoredArrays
from sae_outliers.models.other import precomputed as stored
from sae_outliers.runs.layer_spec import layers_of
from tests.conftest import Run, composed


def made(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 1.0, shape).astype(np.float32)


def as_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def as_npz(path: Path, array: np.ndarray) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), acts=array)
    return path.with_suffix(".npz")


def as_safetensors(path: Path, array: np.ndarray) -> Path:
    save_file({"acts": torch.from_numpy(array)}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_columns(path: Path, array: np.ndarray) -> Path:
    table = arrow.table({f"d{i}": array[:, i] for i in range(array.shape[1])})
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=700)
    return path.with_suffix(".parquet")


def as_lists(path: Path, array: np.ndarray) -> Path:
    table = arrow.table({"token": np.arange(len(array)), "acts": list(array)})
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=2000)
    return path.with_suffix(".parquet")


def as_fixed_lists(path: Path, array: np.ndarray) -> Path:
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(array.ravel()), array.shape[1])
    parquet.write_table(arrow.table({"acts": column}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


RANDOM_ACCESS = [as_npy, as_npz, as_safetensors]
WRITERS = [*RANDOM_ACCESS, as_columns, as_lists, as_fixed_lists]
Write = Callable[[Path, np.ndarray], Path]


def rows_of(documents: list[torch.Tensor]) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for document in documents for row in document.tolist())


@pytest.mark.parametrize("write", WRITERS)
def test_every_row_comes_once_in_documents_of_bounded_size(write: Write, tmp_path: Path) -> None:
    array = made(2500, 6)
    documents = list(StoredArrays(str(write(tmp_path / "a", array)))(0))
    assert {document.dtype for document in documents} == {torch.float32}
    assert max(len(document) for document in documents) <= ROWS_PER_DOCUMENT
    assert rows_of(documents) == sorted(map(tuple, array.tolist()))


@pytest.mark.parametrize("write", RANDOM_ACCESS)
def test_of_three_dimensions_the_first_counts_documents(write: Write, tmp_path: Path) -> None:
    array = made(5, 7, 4)
    documents = list(StoredArrays(str(write(tmp_path / "a", array)))(0))
    assert [document.shape for document in documents] == [(7, 4)] * 5
    expected = {part.tobytes() for part in array}
    assert {document.numpy().tobytes() for document in documents} == expected


@pytest.mark.parametrize("write", WRITERS)
def test_the_seed_sets_the_order(write: Write, tmp_path: Path) -> None:
    path = str(write(tmp_path / "a", made(9 * ROWS_PER_DOCUMENT, 2)))

    def order(seed: int) -> list[float]:
        return [document[0, 0].item() for document in StoredArrays(path)(seed)]

    assert order(1) == order(1)
    assert sorted(order(1)) == sorted(order(2))
    if write is not as_fixed_lists:  # one row group, which is read through
        assert order(1) != order(2)


def test_documents_of_all_files_of_a_folder_are_shuffled_together(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    as_npy(tmp_path / "first", np.zeros((40, 3, 2), np.float32))
    as_safetensors(tmp_path / "deep/second", np.ones((40, 3, 2), np.float32))
    (tmp_path / "notes.txt").write_text("no array")
    values = [document[0, 0].item() for document in StoredArrays(str(tmp_path))(0)]
    assert sorted(values) == [0.0] * 40 + [1.0] * 40
    assert 5 < sum(values[:40]) < 35
    only = list(StoredArrays(str(tmp_path), pattern="*.npy")(0))
    assert len(only) == 40


@pytest.mark.parametrize("write", [as_npz, as_safetensors])
def test_one_of_several_arrays_is_named(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "a", made(3, 2))
    if write is as_npz:
        np.savez(path, acts=made(3, 2), other=made(4, 5))
    else:
        save_file({"acts": torch.zeros(3, 2), "other": torch.zeros(4, 5)}, path)
    (document,) = StoredArrays(str(path), key="other")(0)
    assert document.shape == (4, 5)
    with pytest.raises(ValueError, match=r"contains 2 arrays: name one by data\.source\.key=, of acts, other"):
        list(StoredArrays(str(path))(0))
    with pytest.raises(ValueError, match="contains no 'third'; it contains acts, other"):
        list(StoredArrays(str(path), key="third")(0))


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8), (torch.float64, None)])
def test_sixteen_bits_give_one_warning_and_float32(
    dtype: torch.dtype, bits: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    array = torch.from_numpy(made(3, 5, 4)).to(dtype)
    save_file({"acts": array}, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        documents = list(StoredArrays(str(tmp_path))(0))
    assert rows_of(documents) == sorted(map(tuple, array.float().flatten(0, 1).tolist()))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (0 if bits is None else 1)
    assert all(f"{bits} significant bits" in warning for warning in warnings)


def test_big_endian_files_are_read_too(tmp_path: Path) -> None:
    array = made(4, 3)
    (document,) = StoredArrays(str(as_npy(tmp_path / "a", array.astype(">f4"))))(0)
    assert np.array_equal(document.numpy(), array)


def test_files_are_not_written_to(tmp_path: Path) -> None:
    array = made(4, 3)
    path = as_npy(tmp_path / "a", array)
    (document,) = StoredArrays(str(path))(0)
    document.zero_()
    assert np.array_equal(np.load(path), array)


def nan_at(row: int, column: int) -> np.ndarray:
    array = made(5, 3)
    array[row, column] = np.nan
    return array


@pytest.mark.parametrize(("array", "message"), [
    (made(7), r"a\.npy has shape \[7\]: use \[tokens, d_model\] or \[n, tokens, d_model\]"),
    (np.arange(6).reshape(2, 3), r"a\.npy contains int64, not floating-point numbers"),
    (nan_at(4, 2), r"a\.npy contains nan, in row 4 of 5 of a document, column 2"),
    (np.full((2, 2), 1e300), "contains inf, in row 0"),  # too large for float32
])  # fmt: skip
def test_arrays_that_are_no_activations(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(StoredArrays(str(as_npy(tmp_path / "a", array)))(0))


def test_files_of_different_width(tmp_path: Path) -> None:
    as_npy(tmp_path / "a", made(3, 4))
    as_npz(tmp_path / "b", made(3, 5))
    with pytest.raises(ValueError, match=r"has tokens of width [45], but .* of [45]"):
        list(StoredArrays(str(tmp_path))(0))


def parquet_of(path: Path, **columns: Any) -> str:
    parquet.write_table(arrow.table(columns), path / "a.parquet")
    return str(path / "a.parquet")


@pytest.mark.parametrize(("columns", "message"), [
    ({"a": [[1.0, 2.0], [3.0]]}, "has tokens of widths 1 to 2"),
    ({"a": [[1.0]], "b": [[2.0]]}, "has 2 columns of lists: name one by data.source.key="),
    ({"a": [1.0], "name": ["x"]}, "has columns that are not floating-point numbers: .*name: string"),
    ({"a": [[[1.0]]]}, "has lists of lists: a row has to be one token"),
    ({"a": [[1.0], None]}, "has rows without a value"),
])  # fmt: skip
def test_tables_that_are_no_activations(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(StoredArrays(parquet_of(tmp_path, **columns))(0))


def test_a_column_of_lists_by_name(tmp_path: Path) -> None:
    path = parquet_of(tmp_path, a=[[1.0, 2.0]], b=[[3.0]])
    (document,) = StoredArrays(path, key="b")(0)
    assert document.tolist() == [[3.0]]
    with pytest.raises(ValueError, match="has no column 'c'; it has a, b"):
        StoredArrays(path, key="c")(0)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stored activations are named: add path="):
        StoredArrays(None)(0)
    with pytest.raises(FileNotFoundError, match="nowhere is neither a file nor a folder with"):
        StoredArrays(str(tmp_path / "nowhere"))(0)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"a\.csv is not a supported file: use \.npy, \.npz"):
        StoredArrays(str(tmp_path / "a.csv"))(0)
    with pytest.raises(FileNotFoundError, match="AlphaFold 3 writes them when run with --save_embeddings=true"):
        AlphaFold3Outputs(str(tmp_path))(0)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"(?i)pickle|object"):
        list(StoredArrays(str(tmp_path / "a.npy"))(0))


def test_documents_of_unequal_length_are_padded_and_masked() -> None:
    backbone = stored.load()
    documents = [torch.ones(2, 3), torch.full((4, 3), 2.0)]
    (batch,) = backbone.batches(documents, 2)
    assert batch.special is None
    assert batch.mask is not None
    assert batch.mask.tolist() == [[True, True, False, False], [True] * 4]
    captured = capture(backbone, batch, [0])[0]
    assert torch.equal(captured[batch.mask], torch.cat(documents))
    with pytest.raises(ValueError, match="layer 1 does not exist: stored activations are layer 0"):
        backbone.block(1)


@pytest.mark.parametrize("layer", ["all", "middle", 0])
@pytest.mark.parametrize("model", [["model=af3"], ["model=dump", "path=a/b.npy"]])
def test_the_one_layer_is_number_0(model: list[str], layer: Any) -> None:
    config = composed(*model)
    assert layers_of(config.model, layer) == [0]
    with pytest.raises(ValueError, match="layer=1 does not exist: this model has layers 0 to 0"):
        layers_of(config.model, 1)


def gamma_of(rows: np.ndarray) -> float:
    """Return γ after LayerNorm over each token, in float64; the factor sqrt(d_model) cancels."""
    x = rows.astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return float(np.linalg.norm(x.mean(0)) / np.sqrt(x.var(0).sum()))


def record_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/0/*/record.json")
    return json.loads(path.read_text())


SMALL = ("layer=0", "train=none", "tracker=none", "sae.n_features=256", "sae.k=8", "device=cpu")


def test_a_dump_is_measured_from_end_to_end(command: Run, tmp_path: Path) -> None:
    array = made(2000, 24) + 5 * made(24, seed=1)
    path = as_npy(tmp_path / "acts", array)
    done = command("sae_outliers.run", "model=dump", f"path={path}", *SMALL, "n_eval=2000")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["gamma"] == pytest.approx(gamma_of(array), rel=1e-4)
    assert (record["d_model"], record["layer"], record["last_layer"]) == (24, 0, 0)
    assert record["model"] == "acts"


def test_alphafold_3s_outputs_are_measured_from_end_to_end(command: Run, tmp_path: Path) -> None:
    """Both layouts, because the first releases left the job out of the file name."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 20, 384)
    singles = []
    for number, (job, file) in enumerate([("a", "embeddings.npz"), ("b", "b_seed-1_embeddings.npz")]):
        tokens = 300 + 40 * number
        single = (mean + rng.normal(0, 1, (tokens, 384))).astype(np.float16)
        folder = tmp_path / "af_output" / job / "seed-1_embeddings"
        folder.mkdir(parents=True)
        np.savez_compressed(
            folder / file, single_embeddings=single, pair_embeddings=np.zeros((tokens, tokens, 8), np.float16)
        )
        singles.append(single)
    np.savez(tmp_path / "af_output/a/distogram.npz", distogram=np.zeros((3, 3, 64), np.float16))
    done = command("sae_outliers.run", "model=af3", f"path={tmp_path / 'af_output'}", *SMALL, "n_eval=640")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["model"] == "af3"
    assert record["d_model"] == 384
    assert record["gamma"] == pytest.approx(gamma_of(np.concatenate(singles)), rel=1e-4)
    assert "has 11 significant bits per value" in done.stdout + done.stderr
