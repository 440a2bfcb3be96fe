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
from sae_outliers.data.arrays import AlphaFold3Outputs, StoredArrays
from sae_outliers.data.layered import last_layer
from sae_outliers.data.selection import ROWS_PER_DOCUMENT
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
    values = [document[0, 0].item() for document in StoredArrays(str(tmp_path), zeros="keep")(0)]
    assert sorted(values) == [0.0] * 40 + [1.0] * 40
    assert 5 < sum(values[:40]) < 35
    only = list(StoredArrays(str(tmp_path), pattern="*.npy", zeros="keep")(0))
    assert len(only) == 40


@pytest.mark.parametrize("write", [as_npz, as_safetensors])
def test_one_of_several_arrays_is_named(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "a", made(3, 2))
    if write is as_npz:
        np.savez(path, acts=made(3, 2), other=made(4, 5))
    else:
        save_file({"acts": torch.zeros(3, 2), "other": torch.ones(4, 5)}, path)
    (document,) = StoredArrays(str(path), key="other")(0)
    assert document.shape == (4, 5)
    with pytest.raises(ValueError, match=r"contains 2 arrays: name one by data\.source\.key=, of acts, other"):
        list(StoredArrays(str(path))(0))
    with pytest.raises(ValueError, match="has no array 'third'; it has acts, other"):
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
    ({"a": [[[[1.0]]]]}, "has lists of lists of lists: a row has to be a token, or a document of tokens"),
    ({"d0": [1.0], "d1": [2.0], "score": [0.5]}, r"several kinds \(d0, d1, score \.\.\. score\)"),
    ({"d0": [1.0], "token": [7]}, r"not floating-point numbers: .*token: int64.*key=, such as 'd\*'"),
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
    with pytest.raises(ValueError, match=r"a\.csv is not a supported file: pandas reads it.*; or use \.npy"):
        StoredArrays(str(tmp_path / "a.csv"))(0)
    with pytest.raises(FileNotFoundError, match="AlphaFold 3 writes them when run with --save_embeddings=true"):
        AlphaFold3Outputs(str(tmp_path))(0)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy holds Python objects: .*nothing is unpickled: write it as np\.save"):
        list(StoredArrays(str(tmp_path / "a.npy"))(0))
    torch.save({"a": Path("x")}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"b\.pt cannot be read .*only tensors are read, nothing is unpickled"):
        list(StoredArrays(str(tmp_path / "b.pt"))(0))
    (tmp_path / "c.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.pkl is not a supported file: a pickle can run code .* np\.save"):
        list(StoredArrays(str(tmp_path / "c.pkl"))(0))


def as_pt(path: Path, array: np.ndarray) -> Path:
    torch.save({"acts": torch.from_numpy(array), "step": 3}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_hdf5(path: Path, array: np.ndarray) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["group/acts"] = array
    return path.with_suffix(".h5")


def as_dataset(path: Path, array: np.ndarray) -> Path:
    """Write a folder as SAELens' cache runner does: a column for the hook, with the token ids beside it."""
    datasets = pytest.importorskip("datasets")
    columns = {"blocks.3.hook_mlp_out": array, "token_ids": np.zeros(array.shape[:2], np.int32)}
    features = {
        "blocks.3.hook_mlp_out": datasets.Array2D(array.shape[1:], "float32"),
        "token_ids": datasets.Sequence(datasets.Value("int32"), array.shape[1]),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(path))
    return path


def as_stream(path: Path, array: np.ndarray) -> Path:
    """Write the same without the package `datasets`, whose extension type another process may not know."""
    table = arrow.table({"acts": array.tolist(), "token_ids": [[0] * array.shape[1]] * len(array)})
    path.mkdir()
    with (
        arrow.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as file,
        arrow.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table)
    (path / "cache-0123.arrow").write_bytes(b"left by datasets.map")
    return path


def as_documents(path: Path, array: np.ndarray) -> Path:
    np.savez(path.with_suffix(".npz"), *array)
    return path.with_suffix(".npz")


@pytest.mark.parametrize("write", [as_pt, as_hdf5, as_dataset, as_stream, as_documents])
def test_the_fields_own_files_give_their_documents(write: Write, tmp_path: Path) -> None:
    array = made(5, 7, 4)
    path = write(tmp_path / "a", array)
    documents = list(StoredArrays(str(path), key="*" if write is as_documents else None)(0))
    assert {document.numpy().tobytes() for document in documents} == {part.tobytes() for part in array}
    assert len(documents) == 5


def test_saevs_shards_give_the_layer_that_is_named(tmp_path: Path) -> None:
    array = made(5, 2, 7, 4)  # examples, layers, tokens, d_model
    about = {"layers": [6, 11], "patches_per_ex": 6, "cls_token": True, "d_model": 4, "dtype": "float32"}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    (tmp_path / "shards.json").write_text("[]")
    array[:3].tofile(tmp_path / "acts000000.bin")
    array[3:].tofile(tmp_path / "acts000001.bin")
    documents = list(StoredArrays(str(tmp_path), key=11)(0))  # type: ignore[arg-type]  # as the command line gives it
    assert {document.numpy().tobytes() for document in documents} == {part.tobytes() for part in array[:, 1]}
    with pytest.raises(ValueError, match=r"holds the layers 6, 11: name one by data\.source\.key="):
        list(StoredArrays(str(tmp_path), key="7")(0))


def test_saevs_shards_give_all_their_layers_side_by_side(tmp_path: Path) -> None:
    array = made(5, 2, 7, 4)
    about = {"layers": [6, 11], "content_tokens_per_example": 7, "cls_token": False, "d_model": 4}
    for folder in (tmp_path, tmp_path / "deep"):  # what stands beside no shards.json is not saev's
        folder.mkdir(exist_ok=True)
        (folder / "metadata.json").write_text(json.dumps(about if folder != tmp_path else {"layers": [1, 2]}))
    (tmp_path / "deep/shards.json").write_text("[]")
    array[:3].tofile(tmp_path / "deep/acts000000.bin")
    array[3:].tofile(tmp_path / "deep/acts000001.bin")
    documents = list(StoredArrays(str(tmp_path))(0))
    found = {tuple(document[layer].numpy().tobytes() for layer in (6, 11)) for document in documents}
    assert found == {tuple(part[place].tobytes() for place in (0, 1)) for part in array}
    model = composed("model=dump", f"path={tmp_path}").model
    assert layers_of(model, "all") == [6, 11]
    with pytest.raises(ValueError, match="layer=7 does not exist: this model has layers 6, 11"):
        layers_of(model, 7)
    assert layers_of(composed("model=dump", f"path={tmp_path}", "data.source.key=11").model, "all") == [0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_raw_numbers_are_read_with_a_shape_and_a_type(dtype: str, tmp_path: Path) -> None:
    tensor = torch.from_numpy(made(9, 4)).to(getattr(torch, dtype))
    (tmp_path / "a.dat").write_bytes(tensor.view(torch.uint8).numpy().tobytes())
    path = str(tmp_path / "a.dat")
    for shape in ([9, 4], [-1, 4]):
        (document,) = StoredArrays(path, shape=shape, dtype=dtype)(0)
        assert torch.equal(document, tensor.float())
    with pytest.raises(ValueError, match=r"a\.dat does not say what it holds: add data\.source\.shape="):
        list(StoredArrays(path)(0))
    with pytest.raises(ValueError, match=r"a\.dat has \d+ bytes, which is not shape \[8, 4\] of"):
        list(StoredArrays(path, shape=[8, 4], dtype=dtype)(0))
    with pytest.raises(ValueError, match=r"dtype=float33 is not known, for .*a\.dat"):
        list(StoredArrays(path, shape=[9, 4], dtype="float33")(0))


def test_jaxs_bfloat16_and_long_double(tmp_path: Path) -> None:
    array = made(9, 4)
    (document,) = StoredArrays(str(as_npy(tmp_path / "a", array.astype(np.longdouble))))(0)
    assert np.array_equal(document.numpy(), array)
    tensor = torch.from_numpy(array).bfloat16()
    as_npy(tmp_path / "b", tensor.view(torch.int16).numpy().view("V2"))
    (document,) = StoredArrays(str(tmp_path / "b.npy"))(0)
    assert torch.equal(document, tensor.float())


def padded() -> tuple[np.ndarray, np.ndarray]:
    array, mask = made(6, 10, 4), np.ones((6, 10), bool)
    for i in range(6):
        array[i, 4 + i :], mask[i, 4 + i :] = 0, False
    return array, mask


def test_rows_that_a_mask_excludes_are_no_tokens(tmp_path: Path) -> None:
    array, mask = padded()
    expected = sorted(map(tuple, array[mask].tolist()))
    np.savez(tmp_path / "beside.npz", acts=array, mask=mask)
    np.savez(tmp_path / "named.npz", acts=array, valid=mask.astype(int))
    as_npy(tmp_path / "other", array)
    np.save(tmp_path / "mask.npy", mask)
    sources = [
        StoredArrays(str(tmp_path / "beside.npz")),
        StoredArrays(str(tmp_path / "named.npz"), mask="valid"),
        StoredArrays(str(tmp_path / "other.npy"), mask=str(tmp_path / "mask.npy")),
        StoredArrays(str(tmp_path / "other.npy"), zeros="drop"),
    ]
    for source in sources:
        assert rows_of(list(source(0))) == expected
    assert len(rows_of(list(StoredArrays(str(tmp_path / "other.npy"), zeros="keep")(0)))) == 60
    with pytest.raises(ValueError, match=r"rows are all zero, .*other\.npy: .*mask=.*zeros=drop .*zeros=keep"):
        list(StoredArrays(str(tmp_path / "other.npy"))(0))
    np.savez(tmp_path / "beside.npz", acts=array, mask=mask[:, :3])
    with pytest.raises(ValueError, match=r"shape \[6, 10, 4\], but its mask \[6, 3\] instead of \[6, 10\]"):
        list(StoredArrays(str(tmp_path / "beside.npz"))(0))


def test_columns_are_dimensions_by_a_pattern_or_a_list(tmp_path: Path) -> None:
    array = made(30, 3)
    columns = {f"d{i}": array[:, i] for i in range(3)} | {"score": array[:, 0], "token": np.arange(30)}
    columns["valid"] = np.arange(30) % 2 == 0
    path = parquet_of(tmp_path, **columns)
    assert rows_of(list(StoredArrays(path, key="d*")(0))) == sorted(map(tuple, array.tolist()))
    assert rows_of(list(StoredArrays(path, key=["d0", "d2"])(0))) == sorted(map(tuple, array[:, [0, 2]].tolist()))
    assert rows_of(list(StoredArrays(path, key="d*", mask="valid")(0))) == sorted(map(tuple, array[::2].tolist()))


def layered(folder: Path, layers: list[int], write: Write = as_npy) -> list[np.ndarray]:
    """Write a file per layer, whose mean grows with the layer and whose first column counts the rows."""
    folder.mkdir()
    arrays = [made(2500, 6, seed=layer) + layer * made(6) for layer in layers]
    for layer, array in zip(layers, arrays, strict=True):
        array[:, 0] = np.arange(2500)
        write(folder / f"layer_{layer:02}", array)
    return arrays


@pytest.mark.parametrize("write", WRITERS)
def test_documents_have_the_same_tokens_in_every_layer(write: Write, tmp_path: Path) -> None:
    arrays = layered(tmp_path / "acts", [0, 1, 2], write)
    suffix = next((tmp_path / "acts").iterdir()).suffix
    path = f"{tmp_path}/acts/layer_{{layer}}{suffix}"
    assert last_layer(path) == 2
    documents = list(StoredArrays(path)(5))
    for layer, array in enumerate(arrays):
        assert rows_of([document[layer] for document in documents]) == sorted(map(tuple, array.tolist()))
    assert all(torch.equal(document[0][:, 0], document[layer][:, 0]) for document in documents for layer in (1, 2))


def test_all_layers_of_a_dump_are_captured_in_one_pass() -> None:
    backbone = stored.load()
    documents = [{3: torch.ones(2, 3), 4: torch.full((2, 5), 2.0)}]
    (batch,) = backbone.batches(documents, 1)
    captured = capture(backbone, batch, [3, 4])
    assert all(torch.equal(captured[layer][0], rows) for layer, rows in documents[0].items())
    with pytest.raises(ValueError, match="layer 5 does not exist: stored activations are layer 3, 4"):
        capture(backbone, batch, [5])


def test_layers_that_cannot_be_told_apart_or_are_not_alike_are_refused(tmp_path: Path) -> None:
    layered(tmp_path / "acts", [1, 2, 4])
    with pytest.raises(ValueError, match=r"pooled as one: add .*/acts/layer_\{layer\}\.npy"):
        StoredArrays(str(tmp_path / "acts"))(0)
    path = str(tmp_path / "acts/layer_{layer}.npy")
    with pytest.raises(ValueError, match=r"has the layers 1, 2, 4, with gaps: .*layer_1\.npy layer=0"):
        last_layer(path)
    (tmp_path / "acts/layer_04.npy").rename(tmp_path / "acts/layer_03.npy")
    with pytest.raises(ValueError, match=r"begins with layer 1: add model\.first_layer=1"):
        last_layer(path)
    assert last_layer(path, first=1) == 3
    as_npy(tmp_path / "acts/layer_03", made(2400, 6))
    with pytest.raises(
        ValueError, match=r"layer 1 has 1024 tokens where layer 3 has|layer 1 has 452 tokens where layer 3"
    ):
        list(StoredArrays(path)(0))
    as_npy(tmp_path / "acts/layer_03", made(24, 6))
    with pytest.raises(ValueError, match=r"layer 1 has 3 pieces where layer 3 has 1 pieces"):
        list(StoredArrays(path)(0))
    as_npy(tmp_path / "acts/layer_3", made(24, 6))
    with pytest.raises(ValueError, match="are both layer 3: keep one of them"):
        last_layer(path)
    with pytest.raises(FileNotFoundError, match="names nothing: there is no file or folder with a number"):
        last_layer(str(tmp_path / "block_{layer}.npy"))


def test_shards_of_one_layer_are_pooled(tmp_path: Path) -> None:
    for shard in range(3):
        as_npy(tmp_path / f"layer_3_shard_{shard:05}", made(40, 3, seed=shard))
    assert len(rows_of(list(StoredArrays(str(tmp_path))(0)))) == 120


def test_a_broken_file_is_named_and_left_out_with_a_count_by_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(6):
        path = as_npz(tmp_path / f"{i}", made(40, 3, seed=i))
        if i in (2, 4):
            path.write_bytes(path.read_bytes()[: 100 * i])
    with pytest.raises(ValueError, match=r"[24]\.npz cannot be read .*, or leave such files out by .*on_error=skip"):
        list(StoredArrays(str(tmp_path))(0))
    with caplog.at_level(logging.WARNING):
        assert len(rows_of(list(StoredArrays(str(tmp_path), on_error="skip")(0)))) == 160
    assert ["file 1 that is skipped" in caplog.messages[0], "file 2 that is skipped" in caplog.messages[1]] == [
        True
    ] * 2
    with pytest.raises(ValueError, match="on_error=maybe does not exist: use refuse or skip"):
        StoredArrays(str(tmp_path), on_error="maybe")(0)


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
        capture(backbone, batch, [0, 1])


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


def test_a_dump_is_measured_from_end_to_end(here: Run, tmp_path: Path) -> None:
    array = made(2000, 24) + 5 * made(24, seed=1)
    path = as_npy(tmp_path / "acts", array)
    done = here("sae_outliers.run", "model=dump", f"path={path}", *SMALL, "n_eval=2000")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["gamma"] == pytest.approx(gamma_of(array), rel=1e-4)
    assert (record["d_model"], record["layer"], record["last_layer"]) == (24, 0, 0)
    assert record["model"] == f"{path.parent.name}--acts"


def test_a_dump_of_layers_gives_gamma_by_depth(here: Run, tmp_path: Path) -> None:
    arrays = layered(tmp_path / "acts", [0, 1])
    for layer, array in enumerate(arrays):
        array[:, 0] = array[:, 1]  # the counter of rows is no activation
        np.save(tmp_path / f"acts/layer_{layer:02}.npy", array)
    path = tmp_path / "acts/layer_{layer}.npy"
    settings = ("layer=all", *SMALL[1:], "n_eval=2500")
    done = here("sae_outliers.run", "model=dump", f'path="{path}"', "model.name=two", *settings)
    assert done.returncode == 0, done.stderr
    gammas = {p.parts[-3]: json.loads(p.read_text())["gamma"] for p in tmp_path.glob("runs/*/*/*/record.json")}
    assert gammas == {str(i): pytest.approx(gamma_of(array), rel=1e-4) for i, array in enumerate(arrays)}


@pytest.mark.slow
def test_alphafold_3s_outputs_are_measured_from_end_to_end(here: Run, tmp_path: Path) -> None:
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
    done = here("sae_outliers.run", "model=af3", f"path={tmp_path / 'af_output'}", *SMALL, "n_eval=640")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["model"] == "af3"
    assert record["d_model"] == 384
    assert record["gamma"] == pytest.approx(gamma_of(np.concatenate(singles)), rel=1e-4)
    assert "has 11 significant bits per value" in done.stdout + done.stderr
