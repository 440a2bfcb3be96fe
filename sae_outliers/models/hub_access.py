"""Explain why a checkpoint could not be loaded from the Hugging Face hub."""

from pathlib import Path


def not_loaded(checkpoint: str | Path, source: str, error: Exception) -> FileNotFoundError:
    """Return the error to raise from `error`, with the remedy for a gated repository and the words of `source`."""
    return FileNotFoundError(
        f"{checkpoint} could not be loaded. If access to it has to be requested, accept the licence at "
        f"https://huggingface.co/{checkpoint}, log in with `hf auth login`, and try again; or give a folder with a "
        f"copy as model.loader.checkpoint=. {source} says: {str(error).strip().splitlines()[0]}"
    )
