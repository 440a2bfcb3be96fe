"""A layer's tokens, as every run on it sees them, and how severe their outliers are."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sae_outliers.activations.extract import store_dir, training_tokens
from sae_outliers.activations.store import LayerFiles, LayerTokens
from sae_outliers.config import RunConfig
from sae_outliers.device import resolve_device
from sae_outliers.preprocessing import PREPROCESSINGS, get_preprocessing
from sae_outliers.severity import Moments


@dataclass
class Severity:
    """Moments of a layer's evaluation tokens.

    Attributes:
        seen: of the preprocessed tokens that the SAE gets to see, with their covariance.
        plain, special: {"postln": ..., "raw": ...} without and with special tokens.
    """

    seen: Moments
    plain: dict[str, Moments]
    special: dict[str, Moments]


class LayerData:
    """A layer's tokens and their severity, which all variants of a run share."""

    def __init__(self, cfg: RunConfig, layer: int) -> None:
        self.cfg = cfg
        self.device = resolve_device(cfg.device)
        self.preprocess = get_preprocessing(cfg.preprocessing)
        files = LayerFiles(store_dir(cfg), layer)
        self.tokens = LayerTokens(files, cfg.n_eval, training_tokens(cfg), cfg.special_tokens)
        self.severity = self.measure_severity()

    def eval_tokens(self) -> Iterator[Tensor]:
        """The preprocessed evaluation tokens, in chunks [tokens, d_model]."""
        return (self.preprocess(x.to(self.device)) for x in self.tokens.eval_chunks())

    def training_batches(self, start: int) -> Iterator[Tensor]:
        """Preprocessed batches [batch_size, d_model], from step `start` on."""
        batches = self.tokens.training_batches(self.cfg.train.batch_size, self.cfg.seed, start)
        return (self.preprocess(x.to(self.device)) for x in batches)

    def measure_severity(self) -> Severity:
        plain = {name: Moments() for name in PREPROCESSINGS}
        special = {name: Moments() for name in PREPROCESSINGS}
        seen = Moments(covariance=True)
        for rows, is_special in self.tokens.eval_rows():
            ordinary = ~is_special.to(self.device)
            for name, preprocess in PREPROCESSINGS.items():
                x = preprocess(rows.to(self.device))
                special[name].update(x)
                plain[name].update(x[ordinary])
                if name == self.cfg.preprocessing:
                    seen.update(x if self.cfg.special_tokens else x[ordinary])
        return Severity(seen, plain, special)
