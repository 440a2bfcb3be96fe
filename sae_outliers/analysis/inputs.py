"""What tables and figures are made of: the records, those of trained SAEs with their curves, and what is expected."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from sae_outliers.analysis.trained import Trained
from sae_outliers.paths import CONF, PAPER_MODELS

Source = Literal["natural", "trained"]
EVERY = ("*",)
REQUIRED = ("model", "layer", "last_layer", "sae")  # no table can do without
# Columns that came later, with what holds of the records before them.
BEFORE: dict[str, Any] = {
    "revival": "none",
    "centering": "off",
    "train_steps": 0,
    "domain": "unknown",
    "freeze_b_dec": False,
}
# Columns that tell runs apart or order them; empty where they are missing.
IDENTIFYING = (
    *("planted_gamma", "seed", "sae_seed", "n_eval", "n_features", "k", "d_model", "schema_version"),
    *("lr", "b_dec_lr", "train_batch_size"),
)


@dataclass(frozen=True)
class Inputs:
    """Attributes: natural layers; trained runs, natural and planted; layers expected of models, beside those seen.

    `by` are the settings, as columns, by which runs are told apart besides the axes.
    """

    natural: pd.DataFrame = field(default_factory=pd.DataFrame)
    trained: Trained = field(default_factory=lambda: Trained(pd.DataFrame(), pd.DataFrame()))
    expected: dict[str, range] = field(default_factory=dict)
    by: tuple[str, ...] = ()

    def rows(self, source: Source) -> pd.DataFrame:
        return self.natural if source == "natural" else self.trained.runs


@dataclass(frozen=True)
class Product:
    """A table or a figure that is made wherever the records have what it needs.

    Attributes:
        make: given the Inputs, whose rows of `source` are never empty; an empty table or no figure is left out.
        source: the records that it is about.
        columns: the measured ones it shows. Any of them may be empty; where all are, it is left out.
        note: a table's caption.
        keys: where the authors published the same table, the columns by which the two are matched.
        apart: the settings whose values it can tell apart besides the axes; EVERY for any.
    """

    make: Callable[[Inputs], Any]
    source: Source
    columns: tuple[str, ...] = ()
    note: str = ""
    keys: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()

    def tells_apart(self, by: tuple[str, ...]) -> bool:
        return self.apart == EVERY or set(by) <= set(self.apart)

    def is_blank(self, inputs: Inputs) -> bool:
        """Whether there are records, but none of them has any of the columns."""
        rows = inputs.rows(self.source)
        return bool(self.columns) and len(rows) > 0 and bool(rows[list(self.columns)].isna().all(axis=None))


def complete(records: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the records with `columns` and all that identifies a run; what a record lacks is empty.

    Raises:
        ValueError: a record does not say which layer of which model it is of.
    """
    for name in REQUIRED:
        if name not in records or records[name].isna().any():
            raise ValueError(f"There are records without the column {name}: delete them and run their jobs again")
    numeric = dict.fromkeys((*IDENTIFYING, *columns))
    found = {name: pd.to_numeric(records[name]) if name in records else float("nan") for name in numeric}
    before = {
        name: records[name].where(records[name].notna(), value) if name in records else value
        for name, value in BEFORE.items()
    }
    return records.assign(**found, **before).infer_objects()


def layers_listed_in(folder: Path) -> dict[str, range]:
    """Return the layers that the model configs in `folder` offer, by model; `paper` names the paper's.

    Raises:
        ValueError: the folder holds no model config, or one lacks its name or last layer (named).
    """
    listed = {}
    is_paper = folder == Path("paper") or folder.resolve() == (CONF / "model").resolve()
    paper = [CONF / "model" / f"{name}.yaml" for name in sorted(PAPER_MODELS)]
    for path in paper if is_paper else sorted(folder.glob("*.yaml")):
        config = OmegaConf.load(path)
        model = config.get("model", config) if isinstance(config, DictConfig) else {}
        if "name" not in model or "last_layer" not in model:
            raise ValueError(f"{path} is not a model config: it states no name and last_layer")
        listed[str(model["name"])] = range(model.get("first_layer", 1), model["last_layer"] + 1)
    if not listed:
        raise ValueError(f"expected={folder} holds no model configs (*.yaml)")
    return listed
