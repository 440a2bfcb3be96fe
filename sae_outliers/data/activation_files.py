"""The reader of each kind of file with activations, by suffix. Nothing is unpickled."""

from collections.abc import Callable
from pathlib import Path

from sae_outliers.data.array_files import read_hdf5, read_npy, read_npz, read_safetensors, read_torch
from sae_outliers.data.column_files import read_arrow, read_parquet
from sae_outliers.data.raw_files import read_raw
from sae_outliers.data.reading import reading
from sae_outliers.data.selection import Piece, Selection

READERS: dict[str, Callable[[Path, Selection], list[Piece]]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".pt": read_torch,
    ".pth": read_torch,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".dat": read_raw,
    ".bin": read_raw,
}

CONVERT = {
    ".pkl": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".pickle": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".joblib": "a pickle can run code and is not read: load it yourself and np.save(file, array)",
    ".ckpt": "save its tensors by torch.save({'acts': tensor}, 'acts.pt')",
    ".mat": "scipy.io.loadmat reads it: np.save('acts.npy', loadmat(file)['name'])",
    ".zarr": "np.save('acts.npy', zarr.open(file)[:])",
    ".csv": "pandas reads it: np.save('acts.npy', pandas.read_csv(file).to_numpy('float32'))",
    ".tsv": "pandas reads it: np.save('acts.npy', pandas.read_csv(file, sep='\\t').to_numpy('float32'))",
    ".feather": "pyarrow.feather.read_table reads it: write it as parquet",
}


def pieces_of(file: Path, selection: Selection) -> list[Piece]:
    """Return the pieces of a file. Raise ValueError, with its name, if it cannot be read or holds no activations."""
    with reading(file):
        return READERS[file.suffix.lower()](file, selection)


def supported(file: Path) -> bool:
    """Return True for a file that is read; the cache files that `datasets` leaves beside its own are not."""
    return file.suffix.lower() in READERS and not (file.suffix == ".arrow" and file.name.startswith("cache-"))


def unsupported_message(file: Path) -> str:
    """Return the error message for a file of another type, with how to convert it where that is known."""
    advice = CONVERT.get(file.suffix.lower())
    return f"{file} is not a supported file: " + (f"{advice}; or " if advice else "") + f"use {', '.join(READERS)}"
