"""Stream datasets from the Hugging Face hub or from a local copy, downloading only what is read."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_outliers.data.base import require_nonempty

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """The rows of a dataset, in an order determined by the seed and the version of the package `datasets`.

    Attributes:
        dataset: a hub id, or a folder with parquet, jsonl or csv files.
        config: the dataset's configuration; null if it has only one.
        revision: commit or tag of the hub repository; null: the latest, which is logged.
        buffer: rows in memory, from which the next is drawn. The order of the dataset's files is random as well, and
            recent releases of `datasets` fill the buffer from ten files at once.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    buffer: int = 10_000

    def rows(self, seed: int, *columns: str) -> Iterator[dict[str, Any]]:
        """Return an iterator over `columns` of every row, with images as encoded bytes.

        Raise FileNotFoundError if the hub or the folder cannot be reached, ValueError if the dataset has no such
        configuration, split or column, or no rows.
        """
        dataset = self._open()
        # files without a schema, such as jsonl, have no column names before a row is read
        held = dataset.column_names or list(next(iter(dataset), {}))
        if held and not set(columns) <= set(held):
            raise ValueError(f"{self.dataset} has no column {', '.join(sorted({*columns} - {*held}))}: it has {held}")
        if dataset.features:
            dataset = dataset.decode(False)  # the shuffle buffer holds files, which are smaller than images
        stream = self._read(dataset.select_columns(list(columns)).shuffle(seed=seed, buffer_size=self.buffer))
        return require_nonempty(stream, f"{self.dataset} has no rows in its split {self.split}")

    def _read(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"the dataset {self.dataset} cannot be read any further: {error}") from error

    def _open(self) -> Any:
        from datasets import load_dataset  # imported lazily: takes a second

        folder = Path(self.dataset).expanduser()
        local = folder.is_dir()
        if not local and self.dataset.startswith(("/", "~", ".")):
            raise FileNotFoundError(f"there is no folder {folder}")
        revision = None if local else self._resolve_commit()
        name = str(folder) if local else self.dataset
        try:
            return load_dataset(name, self.config, split=self.split, revision=revision, streaming=True)
        except Exception as error:  # anything from ValueError (no such split) to RuntimeError (a script)
            raise ValueError(f"the dataset {self.dataset} cannot be opened: {error}") from error

    def _resolve_commit(self) -> str | None:
        """Return the commit to read, with one request: load_dataset would retry for half a minute if offline."""
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
    """A source of documents from one column of a dataset; rows without a value are skipped.

    Attributes:
        column: the column's name.
    """

    column: str = "text"

    def __call__(self, seed: int) -> Iterator[Any]:
        return (row[self.column] for row in self.rows(seed, self.column) if row[self.column])
