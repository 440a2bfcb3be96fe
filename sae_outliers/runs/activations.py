"""The activations that a run's config asks for: here its settings become a token stream and a store."""

from collections.abc import Sequence

from sae_outliers.activations.extract import Wanted, fill, holds
from sae_outliers.activations.layer_files import StoredLayer
from sae_outliers.activations.stream import TokenStream, items_per_batch
from sae_outliers.config import RunConfig
from sae_outliers.runs.identity import store_directory, store_settings
from sae_outliers.utils.device import memory_gb, resolve_device


def training_tokens(cfg: RunConfig) -> int:
    """Return the tokens to store for training; none for a run that does not train."""
    return cfg.train.n_tokens if cfg.train.steps else 0


def wanted(cfg: RunConfig) -> Wanted:
    """Return the tokens that the store has to hold for a run."""
    return Wanted(cfg.n_eval, training_tokens(cfg), cfg.store_dtype)


def stream_of(cfg: RunConfig) -> TokenStream:
    device = resolve_device(cfg.device)
    return TokenStream(
        model=cfg.model.name,
        data=cfg.data.name,
        loader=cfg.model.loader,
        source=cfg.data.source,
        seed=cfg.seed,
        tokens_per_item=cfg.data.tokens_per_item,
        batch_size=items_per_batch(cfg.data.batch_size, cfg.model.gpu_batch_size, memory_gb(device)),
        device=device,
    )


def extract(cfg: RunConfig, layers: Sequence[int]) -> None:
    """Store the tokens that `cfg` asks for at `layers`. Raises ValueError as `activations.extract.fill`."""
    fill(store_directory(cfg), store_settings(cfg), stream_of(cfg), layers, wanted(cfg))


def is_stored(cfg: RunConfig, layers: Sequence[int]) -> bool:
    """Whether the store holds the tokens that `cfg` asks for at `layers`."""
    return holds(store_directory(cfg), layers, wanted(cfg))


def stored_layer(cfg: RunConfig, layer: int) -> StoredLayer:
    """Return the files of the activations that a run on this layer reads."""
    return StoredLayer(store_directory(cfg), layer)
