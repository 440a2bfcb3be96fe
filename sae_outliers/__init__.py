"""Measure activation outliers and the sparse-autoencoder features that they kill (arXiv 2605.31518).

The names below are the public API. Each is imported when it is first used: `import sae_outliers` loads neither torch
nor anything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# ruff: noqa: F401 - what type checkers and editors are shown is used by __getattr__ alone
if TYPE_CHECKING:
    from sae_outliers.config import TrainConfig
    from sae_outliers.diagnosis.api import diagnose
    from sae_outliers.diagnosis.centering import Centering
    from sae_outliers.results.record import read_records
    from sae_outliers.sae.architectures.batchtopk import BatchTopK
    from sae_outliers.sae.architectures.gated import Gated
    from sae_outliers.sae.architectures.groupmax import GroupMax
    from sae_outliers.sae.architectures.jumprelu import JumpReLU
    from sae_outliers.sae.architectures.matryoshka import Matryoshka
    from sae_outliers.sae.architectures.relu import ReLU
    from sae_outliers.sae.architectures.topk import TopK
    from sae_outliers.sae.evaluation import evaluate
    from sae_outliers.sae.io import fold, load_sae
    from sae_outliers.stats.moments import Moments, effective_rank, geometric_median, moments, outlier_dims
    from sae_outliers.stats.theory import bias_half_time, dead_by_relu, dead_by_topk, dead_by_topk_small_gamma
    from sae_outliers.stats.transforms import CENTERINGS, postln
    from sae_outliers.training.revival import AuxK
    from sae_outliers.training.trainer import Trainer

__version__ = "0.1.0"

# public name -> module that defines it
_DEFINED_IN = {
    # the quick answer
    "diagnose": "diagnosis.api",
    "Centering": "diagnosis.centering",
    # activations
    "Moments": "stats.moments",
    "moments": "stats.moments",
    "effective_rank": "stats.moments",
    "outlier_dims": "stats.moments",
    "geometric_median": "stats.moments",
    "postln": "stats.transforms",
    "CENTERINGS": "stats.transforms",
    # closed forms
    "dead_by_relu": "stats.theory",
    "dead_by_topk": "stats.theory",
    "dead_by_topk_small_gamma": "stats.theory",
    "bias_half_time": "stats.theory",
    # SAEs
    "TopK": "sae.architectures.topk",
    "BatchTopK": "sae.architectures.batchtopk",
    "Matryoshka": "sae.architectures.matryoshka",
    "GroupMax": "sae.architectures.groupmax",
    "ReLU": "sae.architectures.relu",
    "JumpReLU": "sae.architectures.jumprelu",
    "Gated": "sae.architectures.gated",
    "evaluate": "sae.evaluation",
    "load_sae": "sae.io",
    "fold": "sae.io",
    # training
    "Trainer": "training.trainer",
    "TrainConfig": "config",
    "AuxK": "training.revival",
    # results
    "read_records": "results.record",
}

__all__ = list(_DEFINED_IN)


def __getattr__(name: str) -> Any:
    """Import a public name from its module; later lookups find it here (PEP 562)."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_DEFINED_IN})
