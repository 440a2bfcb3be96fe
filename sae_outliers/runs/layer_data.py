"""A layer's tokens, as every run on it sees them, and how severe their outliers are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_outliers.activations.extract import store_dir, training_tokens
from sae_outliers.activations.store import LayerFiles, LayerTokens
from sae_outliers.config import RunConfig
from sae_outliers.stats.moments import Moments
from sae_outliers.stats.transforms import PREPROCESSINGS
from sae_outliers.utils.device import resolve_device


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


class SeverityMeter:
    """Takes in a layer's rows chunk by chunk."""

    def __init__(self, cfg: RunConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        plain, special = ({name: Moments() for name in PREPROCESSINGS} for _ in range(2))
        self.severity = Severity(Moments(covariance=True), plain, special)

    def update(self, rows: Tensor, is_special: Tensor) -> None:
        """Rows [n, d_model] as the network put them out, and which of them are special tokens, bool [n]."""
        rows, ordinary = rows.to(self.device), ~is_special.to(self.device)
        for name, preprocess in PREPROCESSINGS.items():
            x = preprocess(rows)
            self.severity.special[name].update(x)
            self.severity.plain[name].update(x[ordinary])
            if name == self.cfg.preprocessing:
                self.severity.seen.update(x if self.cfg.special_tokens else x[ordinary])


class EvalData(Protocol):
    """What a job needs to know of its layer to measure at initialisation."""

    device: torch.device
    severity: Severity
    d_model: int
    n_train: int

    def eval_tokens(self) -> Iterator[Tensor]:
        """The preprocessed evaluation tokens, in chunks [tokens, d_model]."""


class LayerData:
    """A layer's stored tokens and their severity, which all variants of a run share."""

    def __init__(self, cfg: RunConfig, layer: int) -> None:
        self.cfg = cfg
        self.device = resolve_device(cfg.device)
        self.preprocess = PREPROCESSINGS[cfg.preprocessing]
        self.n_train = training_tokens(cfg)
        self.tokens = LayerTokens(LayerFiles(store_dir(cfg), layer), cfg.n_eval, self.n_train, cfg.special_tokens)
        self.d_model = self.tokens.d_model
        meter = SeverityMeter(cfg, self.device)
        for rows, is_special in self.tokens.eval_rows():
            meter.update(rows, is_special)
        self.severity = meter.severity

    def eval_tokens(self) -> Iterator[Tensor]:
        """The preprocessed evaluation tokens, in chunks [tokens, d_model]."""
        return (self.preprocess(x.to(self.device)) for x in self.tokens.eval_chunks())

    def training_batches(self, start: int) -> Iterator[Tensor]:
        """Preprocessed batches [batch_size, d_model], from step `start` on."""
        batches = self.tokens.training_batches(self.cfg.train.batch_size, self.cfg.seed, start)
        return (self.preprocess(x.to(self.device)) for x in batches)
