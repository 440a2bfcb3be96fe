"""Fill the activation store: the token stream once through the network, for every layer that lacks tokens."""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import torch
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from sae_outliers.activations.capture import capture
from sae_outliers.activations.store import LayerFiles
from sae_outliers.config import RunConfig
from sae_outliers.device import resolve_device
from sae_outliers.files import digest, write_json
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.progress import Progress

log = logging.getLogger(__name__)


def store_identity(cfg: RunConfig) -> dict[str, object]:
    """All that determines the stored rows and their order; their number does not, since a store only grows."""
    data: dict[str, object] = OmegaConf.to_container(cfg.data)  # type: ignore[assignment]
    data.pop("rescale_mean")  # done after the activations are read
    return {
        "model": cfg.model.name,
        "loader": OmegaConf.to_container(cfg.model.loader),
        "data": data,
        "seed": cfg.seed,
        "format": 1,
    }


def store_dir(cfg: RunConfig) -> Path:
    identity = store_identity(cfg)
    return Path(cfg.results_dir) / "activations" / f"{cfg.model.name}-{digest(identity)}"


def training_tokens(cfg: RunConfig) -> int:
    """Tokens to store for training; none for a run that does not train."""
    return cfg.train.n_tokens if cfg.train.steps else 0


def tokens_wanted(cfg: RunConfig) -> int:
    return cfg.n_eval + training_tokens(cfg)


def extract(cfg: RunConfig, layers: Sequence[int]) -> None:
    """Make sure that `layers` of the model have the tokens that `cfg` asks for; what is stored is not done again.

    One process at a time fills a store; others wait for it. Layers that are equally far share one forward pass.

    Raises:
        ValueError: the data ends before there are enough tokens.
    """
    directory = store_dir(cfg)
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        lacking = [layer for layer in layers if LayerFiles(directory, layer).extent().tokens < tokens_wanted(cfg)]
        if not lacking:
            return
        write_json(directory / "store.json", store_identity(cfg))
        device = resolve_device(cfg.device)
        backbone: Backbone = instantiate(cfg.model.loader)
        backbone.module.eval().to(device)

        def batches_done(layer: int) -> int:
            return LayerFiles(directory, layer).extent().batches

        for done, group in groupby(sorted(lacking, key=batches_done), key=batches_done):
            _extract_from(cfg, backbone, {layer: LayerFiles(directory, layer) for layer in group}, done, device)


def _extract_from(
    cfg: RunConfig, backbone: Backbone, files: dict[int, LayerFiles], done: int, device: torch.device
) -> None:
    """Append to all `files`, from batch `done` of the token stream on, until they hold the tokens wanted."""
    wanted = tokens_wanted(cfg)
    first = next(iter(files.values()))
    with Progress(f"{cfg.model.name}: activations of {len(files)} layer(s)", wanted, "tokens") as progress:
        stored = first.extent().tokens
        progress.update(stored)
        for number, batch in _stream(cfg, backbone, done):
            hidden = capture(backbone, batch.to(device), files)
            for layer, output in hidden.items():
                files[layer].append(*token_rows(output, batch, cfg.data.tokens_per_item, (cfg.seed, number)), 1)
            stored = first.extent().tokens
            progress.update(stored)
            if stored >= wanted:
                return
    raise ValueError(
        f"data={cfg.data.name} has only {stored} tokens for {cfg.model.name}, but n_eval and train.n_tokens "
        f"ask for {wanted}: lower them or name larger data"
    )


def _stream(cfg: RunConfig, backbone: Backbone, start: int) -> Iterator[tuple[int, Batch]]:
    """Numbered batches from number `start` on; those before are tokenised but not run."""
    documents = instantiate(cfg.data.source)(cfg.seed)
    return islice(enumerate(backbone.batches(documents, cfg.data.batch_size)), start, None)


def token_rows(
    hidden: Tensor, batch: Batch, tokens_per_item: int | None, seed: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The real tokens among hidden [items, positions, d_model]: rows [n, d_model], and which are special, [n].

    With `tokens_per_item`, at most so many tokens of an item that are not special are kept, drawn by `seed`.
    """
    shape = hidden.shape[:2]
    mask = torch.ones(shape, dtype=torch.bool) if batch.mask is None else batch.mask
    special = torch.zeros(shape, dtype=torch.bool) if batch.special is None else batch.special
    if mask.shape != shape:
        raise ValueError(
            f"the mask covers [items, positions] = {list(mask.shape)}, the block's output {list(shape)}: check the "
            "model's `blocks` and its `collate`"
        )
    keep = mask
    if tokens_per_item is not None:
        keep = special | _drawn(mask & ~special, tokens_per_item, seed)
    return hidden[keep.to(hidden.device)], special[keep]


def _drawn(candidates: Tensor, n: int, seed: tuple[int, int]) -> Tensor:
    """At most `n` True entries of each row of `candidates` (bool [items, positions]), drawn at random."""
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    scores = torch.rand(candidates.shape, generator=generator) * candidates
    best = scores.topk(min(n, scores.shape[1]), dim=1).indices
    return torch.zeros_like(candidates).scatter(1, best, True) & candidates
