"""Datasets of the Hugging Face hub, or a local copy of one, streamed: no more is downloaded than is read."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.data.base import some

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """Rows of a dataset, in an order that is fixed by the seed and the version of the package `datasets`.

    Attributes:
        dataset: a hub id, or a folder with files of a kind that the hub shows as rows (parquet, jsonl, csv).
        config: which of the dataset's parts; null where it has only one.
        revision: commit or tag of the hub's repository; null: the newest, which the log then names.
        buffer: rows in memory, among which the next is drawn. The dataset's files come in random order as well, and
            recent releases of `datasets` fill the buffer from ten of them at once.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    buffer: int = 10_000

    def rows(self, seed: int, *columns: str) -> Iterator[dict[str, Any]]:
        """`columns` of every row, images as the bytes of their files.

        Raises FileNotFoundError if the hub or the folder cannot be reached, ValueError if the dataset has no such
        part or column, or no row.
        """
        dataset = self._opened()
        held = dataset.column_names or list(next(iter(dataset), {}))
        if held and not set(columns) <= set(held):
            raise ValueError(f"{self.dataset} has no column {', '.join(sorted({*columns} - {*held}))}: it has {held}")
        if dataset.features:
            dataset = dataset.decode(False)
        stream = self._read(dataset.select_columns(list(columns)).shuffle(seed=seed, buffer_size=self.buffer))
        return some(stream, f"{self.dataset} has no rows in its split {self.split}")

    def _read(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"the dataset {self.dataset} cannot be read on: {error}") from error

    def _opened(self) -> Any:
        from datasets import load_dataset  # here, for the import takes a second

        folder = Path(self.dataset).expanduser()
        local = folder.is_dir()
        if not local and self.dataset.startswith(("/", "~", ".")):
            raise FileNotFoundError(f"there is no folder {folder}")
        revision = None if local else self._reached()
        name = str(folder) if local else self.dataset
        try:
            return load_dataset(name, self.config, split=self.split, revision=revision, streaming=True)
        except Exception as error:  # anything from ValueError (no such split) to RuntimeError (a script)
            raise ValueError(f"the dataset {self.dataset} cannot be opened: {error}") from error

    def _reached(self) -> str | None:
        """The commit to read. One request without repeats: load_dataset would take half a minute to give up."""
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.dataset, revision=self.revision, timeout=20).sha
        except Exception as error:  # the network's errors differ between versions of the hub's client
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise FileNotFoundError(
                f"the dataset {self.dataset} cannot be reached on the Hugging Face hub "
                f"({reason}); without the hub, name a folder with a copy of it by "
                "data.source.dataset=, or files of your own by data=text_files, fasta, genome or image_folder"
            ) from error
        if self.revision is None:
            log.info("%s is read at revision %s; data.source.revision= pins it", self.dataset, commit)
        return commit


@dataclass(frozen=True, kw_only=True)
class HubColumn(HubRows):
    """One column of a dataset as documents; rows without a value there are left out.

    Attributes:
        column: the column's name.
    """

    column: str = "text"

    def __call__(self, seed: int) -> Iterator[Any]:
        return (row[self.column] for row in self.rows(seed, self.column) if row[self.column])
