"""A layer's tokens as its runs read them, and how severe their outliers are."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_outliers.activations.store import LayerTokens
from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import stored_layer, training_tokens
from sae_outliers.stats.kurtosis import Kurtosis
from sae_outliers.stats.moments import Moments
from sae_outliers.stats.transforms import PREPROCESSINGS
from sae_outliers.utils.device import resolve_device
from sae_outliers.utils.prefetch import on_device


@dataclass
class Severity:
    """Moments of a layer's evaluation tokens.

    Attributes:
        sae_tokens: of the preprocessed tokens that the SAE is given, with their covariance.
        kurtosis: of the same tokens.
        without_special, with_special: {"postln": ..., "raw": ...} without and with special tokens.
    """

    sae_tokens: Moments
    kurtosis: Kurtosis
    without_special: dict[str, Moments]
    with_special: dict[str, Moments]


class SeverityMeter:
    """Takes in a layer's rows chunk by chunk."""

    def __init__(self, preprocessing: str, special_tokens: bool, device: torch.device) -> None:
        self.preprocessing, self.special_tokens, self.device = preprocessing, special_tokens, device
        without, with_special = ({name: Moments() for name in PREPROCESSINGS} for _ in range(2))
        self.severity = Severity(Moments(covariance=True), Kurtosis(), without, with_special)

    def update(self, rows: Tensor, is_special: Tensor) -> None:
        """Take in rows [n, d_model] as the network put them out, and which of them are special tokens, bool [n]."""
        rows = rows.to(self.device, non_blocking=True)
        # places rather than a mask, whose count a GPU would be waited for at each use
        ordinary = (~is_special.cpu()).nonzero()[:, 0].to(self.device, non_blocking=True)
        for name, preprocess in PREPROCESSINGS.items():
            x = preprocess(rows)
            self.severity.with_special[name].update(x)
            without = x if len(ordinary) == len(x) else x.index_select(0, ordinary)
            self.severity.without_special[name].update(without)
            if name == self.preprocessing:
                tokens = x if self.special_tokens else without
                self.severity.sae_tokens.update(tokens)
                self.severity.kurtosis.update(tokens)


class LayerData:
    """A layer's stored tokens and their severity, which all variants of a run share."""

    def __init__(self, cfg: RunConfig, layer: int) -> None:
        self.device = resolve_device(cfg.device)
        self.preprocess = PREPROCESSINGS[cfg.preprocessing]
        self.batch_size, self.seed = cfg.train.batch_size, cfg.seed
        self.tokens = LayerTokens(stored_layer(cfg, layer), cfg.n_eval, training_tokens(cfg), cfg.special_tokens)
        meter = SeverityMeter(cfg.preprocessing, cfg.special_tokens, self.device)
        for rows, is_special in self.tokens.eval_rows():
            meter.update(rows, is_special)
        self.severity = meter.severity

    def eval_tokens(self) -> Iterator[Tensor]:
        """Yield the preprocessed evaluation tokens in chunks [tokens, d_model]."""
        return map(self.preprocess, on_device(self.tokens.eval_chunks(), self.device))

    def training_batches(self, start: int) -> Iterator[Tensor]:
        """Yield preprocessed batches [batch_size, d_model], from step `start` on."""
        batches = self.tokens.training_batches(self.batch_size, self.seed, start, blocks_ahead(self.device))
        return map(self.preprocess, on_device(batches, self.device))


def blocks_ahead(device: torch.device) -> int:
    """Return how many blocks of training tokens are read ahead: on a CPU the thread would take the training's time."""
    return 0 if device.type == "cpu" else 1
