"""What to do, as lines to paste for the libraries that people train SAEs with."""

from sae_outliers.diagnosis.centering import Centering

LIBRARIES = ("saelens", "dictionary_learning", "sparsify", "torch")


def recipe(library: str, centering: Centering, n_features: int, k: int) -> str:
    """Return them. Raises ValueError for another library."""
    if library not in LIBRARIES:
        raise ValueError(f"there is no recipe for {library}: use one of {', '.join(LIBRARIES)}")
    return ""
