"""Where a run's files are: `<results_dir>/runs/<model>/<layer>/<run id>/`."""

from pathlib import Path

from sae_outliers.results.integrity import read_if_whole

# there only while a run is under way
CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_DIGESTS = "checkpoint.json"


def run_dir(results_dir: Path, model: str, layer: int, run_id: str) -> Path:
    return results_dir / "runs" / model / str(layer) / run_id


def is_finished(directory: Path) -> bool:
    """Whether a run is finished: its record, the last file that it writes, is there and whole."""
    record = directory / "record.json"
    return record.is_file() and read_if_whole(record) is not None
