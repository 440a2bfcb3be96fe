"""All layers of a model in one pass, nothing stored: the tokens of each layer are held until it is diagnosed.

Where memory does not hold those of all layers, the model runs again for the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sae_outliers.activations.split import is_token
from sae_outliers.activations.stream import Captured, TokenStream
from sae_outliers.config import RunConfig
from sae_outliers.diagnosis.api import diagnose_tokens, settings_for
from sae_outliers.diagnosis.layer import Settings
from sae_outliers.diagnosis.loaded import LoadedSae
from sae_outliers.diagnosis.result import Diagnosis
from sae_outliers.models.backbone import Backbone
from sae_outliers.runs.activations import stream_of
from sae_outliers.runs.streaming import up_to
from sae_outliers.utils.progress import Progress

SHARE_OF_MEMORY = 0.5  # of what is free, for tokens
FREE_IF_UNKNOWN = 4 << 30  # bytes, where the system does not say


@torch.no_grad()
def diagnose_layers(
    cfg: RunConfig,
    layers: Sequence[int],
    n_features: int | None,
    k: int | None,
    loaded: LoadedSae | None,
    preprocessing: str | None,
) -> Iterator[Diagnosis]:
    """Yield the diagnosis of each layer of the config's model. `cfg.n_eval` tokens are taken, or all that there are.

    Raises:
        ValueError: as `diagnose`, and as the model's loader and data do.
    """
    stream = stream_of(cfg)
    shared: dict[int, Settings] = {}  # by width, for the layers of most networks have one
    for layer, tokens in layer_tokens(cfg, stream, stream.load_backbone(), layers):
        try:
            width = tokens.shape[1]
            if width not in shared:
                shared[width] = settings_for(
                    width, n_features, k, loaded, preprocessing or _default(cfg, loaded), cfg.seed, stream.device
                )
            diagnosis = diagnose_tokens(_finite(tokens), shared[width], loaded)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from error
        yield replace(diagnosis, layer=layer)


def _default(cfg: RunConfig, loaded: LoadedSae | None) -> str:
    """Return what the SAE's files declare, else what `run` does."""
    return (loaded.preprocessing if loaded else None) or cfg.preprocessing


def layer_tokens(
    cfg: RunConfig, stream: TokenStream, backbone: Backbone, layers: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer with its tokens, float32 [n, d_model] on the CPU, which are freed as they are taken."""
    left = list(layers)
    while left:
        held = _one_pass(cfg, stream, backbone, left)
        left = [layer for layer in left if layer not in held]
        while held:
            layer = next(iter(held))
            yield layer, held.pop(layer)


def _one_pass(cfg: RunConfig, stream: TokenStream, backbone: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
    """Run the model until each of the layers that memory takes has `n_eval` tokens, or the data end."""
    held: dict[int, Tensor] = {}
    filled: dict[int, int] = {}
    with Progress(f"{stream.model}: tokens of {len(layers)} layer(s)", cfg.n_eval, "tokens") as progress:
        for captured in stream.read(backbone, layers):
            if not held:
                held = _buffers(captured, cfg.n_eval)
                filled = dict.fromkeys(held, 0)
            for layer, buffer in held.items():
                filled[layer] += _put(captured, layer, buffer[filled[layer] :], cfg.special_tokens)
            least = min(filled.values())
            progress.update(least)
            if least == cfg.n_eval:
                break
    if not held:
        raise ValueError(f"data={stream.data} has no tokens for {stream.model}")
    return {layer: buffer[: filled[layer]] for layer, buffer in held.items()}


def _buffers(captured: Captured, n_tokens: int) -> dict[int, Tensor]:
    """Return a buffer [n_tokens, d_model] for each of the first layers, one at least, that memory takes."""
    free = SHARE_OF_MEMORY * free_memory()
    buffers: dict[int, Tensor] = {}
    for layer, rows in captured.rows.items():
        free -= 4 * n_tokens * rows.shape[1]
        if buffers and free < 0:
            break
        buffers[layer] = torch.empty(n_tokens, rows.shape[1])
    return buffers


def _put(captured: Captured, layer: int, free: Tensor, special_tokens: bool) -> int:
    """Copy a batch's tokens of a layer into the rows that are free. Return how many there were."""
    flags, rows = captured.flags[layer], captured.rows[layer]
    end, _ = up_to(flags, len(free), special_tokens)
    kept = torch.from_numpy(is_token(flags[:end].numpy(), special_tokens)).to(rows.device)
    tokens = rows[:end][kept]
    free[: len(tokens)] = tokens
    return len(tokens)


def _finite(tokens: Tensor) -> Tensor:
    if tokens.sum().isfinite():  # a tenth of the time, and whatever is not finite makes the sum so
        return tokens
    if bad := int((~tokens.isfinite()).any(1).sum()):
        raise ValueError(f"{bad} of {len(tokens)} tokens are not finite: load the model in a wider dtype")
    return tokens


def free_memory() -> int:
    """Return the bytes that this machine could give."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return FREE_IF_UNKNOWN
