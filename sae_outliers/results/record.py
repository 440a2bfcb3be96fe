"""The result of one run: `results/runs/<model>/<layer>/<run id>/record.json`, one flat row."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_outliers.utils.files import write_json

SCHEMA_VERSION = 2  # raised whenever a column changes its meaning

# What two records must share before their figures at initialisation may stand in one table ...
INIT_SETTINGS = ("preprocessing", "special_tokens", "n_eval", "n_features", "k", "seed", "sae_seed", "init")
# ... and what they must share besides, before their figures after training may.
TRAIN_SETTINGS = (
    "train_steps",
    "train_batch_size",
    "n_train",
    "lr",
    "warmup_steps",
    "decay_from",
    "dead_window",
)
# An option belongs to a type: records of different types may differ in it.
OPTIONS_OF = {"sae_options": "sae", "precision": "sae", "revival_options": "revival", "init_b_dec": "centering"}


@dataclass
class Record:
    """Percentages are 0-100; `gamma` and the like are dimensionless; None: not measured (no training)."""

    # who
    run_id: str
    model: str
    domain: str
    layer: int
    last_layer: int
    sae: str  # topk, relu, batchtopk, ...
    revival: str
    centering: str
    # settings
    preprocessing: str
    special_tokens: bool
    n_eval: int
    n_features: int
    k: int
    seed: int  # of the data
    sae_seed: int
    init: str
    init_b_dec: str
    planted_gamma: float | None  # the mean was rescaled to this γ; None: as the network made it
    data: str
    train_steps: int
    train_batch_size: int
    n_train: int
    lr: float
    b_dec_lr: float
    warmup_steps: int
    decay_from: float
    dead_window: int
    precision: str
    sae_options: str  # JSON, as is the next
    revival_options: str
    # severity of the activations, before centering
    d_model: int
    gamma: float  # post-LN (planted_gamma if there is one), on what the SAE sees: special tokens if `special_tokens`
    gamma_raw: float  # likewise, before LayerNorm
    gamma_without_special: float
    gamma_raw_without_special: float
    gamma_with_special: float
    gamma_raw_with_special: float
    effective_rank: float
    outlier_dims: list[list[float]]  # [index, |μ|/σ], the largest ratios first
    gamma_sae_input: float  # after preprocessing and centering
    # at initialisation
    dead_pct_init_topk: float
    dead_pct_init_relu: float
    alignment_dead_init: float | None  # mean cos(W_enc, μ) of the features dead by TopK; None if there are none
    theory_pct_topk: float
    theory_pct_relu: float
    theory_pct_topk_small_gamma: float
    # after training
    dead_pct_final: float | None  # the SAE itself has them active on no evaluation token
    dead_pct_final_topk: float | None
    dead_pct_final_relu: float | None
    dead_pct_final_window: float | None  # not fired in the last `dead_window` training tokens
    fvu: float | None
    l0: float | None
    b_dec_distance: float | None  # ||b_dec - μ|| / ||μ||, both in the space of the preprocessed activations
    b_dec_cos: float | None
    # precision=bf16_select beside float32, on the evaluation tokens
    select_pct_changed: float | None  # selections
    select_pct_tokens_changed: float | None
    select_fvu_change: float | None
    # where
    git_commit: str
    device: str
    versions: dict[str, str]
    seconds: float  # of all runs that were trained side by side, together
    side_by_side: int
    peak_memory_mb: float
    schema_version: int = SCHEMA_VERSION


def run_dir(results_dir: Path, model: str, layer: int, run_id: str) -> Path:
    return results_dir / "runs" / model / str(layer) / run_id


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / "record.json", asdict(record))


def read_record(directory: Path) -> Record:
    return Record(**json.loads((directory / "record.json").read_text()))


def describe(record: Record) -> str:
    """A record's main figures in a line."""
    parts = [
        f"{record.model} layer {record.layer}, {record.sae}, revival={record.revival}, "
        f"centering={record.centering}: γ {record.gamma:.2f}",
        f"dead at initialisation by TopK {record.dead_pct_init_topk:.1f} %, by ReLU {record.dead_pct_init_relu:.1f} %",
    ]
    if record.dead_pct_final_topk is not None:
        parts.append(f"after training {record.dead_pct_final_topk:.1f} %, {record.dead_pct_final_relu:.1f} %")
    return "; ".join(parts)


def is_finished(directory: Path) -> bool:
    """A run is finished when its record is there: it is the last file that a run writes."""
    return (directory / "record.json").is_file()


def read_records(results_dir: Path) -> pd.DataFrame:
    """All records below `results_dir`, a row each, with their directory as `run_dir`; sorted by model, layer.

    Raises:
        ValueError: a record is not valid JSON (the path is named).
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((results_dir / "runs").glob("*/*/*/record.json")):
        try:
            rows.append(json.loads(path.read_text()) | {"run_dir": str(path.parent)})
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); delete it and run its job again") from error
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(["model", "layer", "centering"], ignore_index=True)
