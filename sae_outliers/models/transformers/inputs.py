"""What a transformers model reads besides text: images and sounds, prepared as its checkpoint says."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sae_outliers.models.backbone import Batch, first_output

MOST_SPECIAL = 16  # CLS, distillation and register tokens; what is more is something else
SECONDS = 10.0  # of sound in an item, where the feature extractor does not say

Items = Callable[[Any], Iterator[Any]]
Collate = Callable[[list[Any]], Batch]


def image_inputs(
    checkpoint: Any, network: Any, first_block: nn.Module, options: dict[str, Any]
) -> tuple[Items, Collate]:
    """Return how images become items and batches, by the image processor in the checkpoint.

    Raise ValueError if the checkpoint has no image processor, or the network adds more tokens than CLS and registers.
    """
    from transformers import AutoImageProcessor

    processor = _beside(checkpoint, "image processor", AutoImageProcessor, options)

    def items(image: Any) -> Iterator[Tensor]:
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"{checkpoint} reads images, and the data are {type(image).__name__}: name others, such as "
                "data=images or data=image_folder, and model.domain=vision"
            )
        yield processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    (blank,) = items(Image.new("RGB", (64, 64)))
    n_special, positions = _special_tokens(network, first_block, blank[None])
    special = torch.arange(positions) < n_special if n_special else None

    def collate(pixels: list[Tensor]) -> Batch:
        return Batch(
            {"pixel_values": torch.stack(pixels)}, special=None if special is None else special.expand(len(pixels), -1)
        )

    return items, collate


def _beside(checkpoint: Any, what: str, kind: Any, options: dict[str, Any]) -> Any:
    """Return what prepares the data of a checkpoint. Raise ValueError, with the remedy, if the checkpoint has none."""
    try:
        return kind.from_pretrained(checkpoint, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} has no {what} (preprocessor_config.json): save that of the checkpoint that it was made from "
            f"beside it. transformers says: {str(error).strip().splitlines()[0]}"
        ) from error


def grid_or_rows(output: Any) -> Tensor:
    """Return an image model's states as [items, positions, d_model]: a grid [items, d_model, rows, columns] by row."""
    states = first_output(output)
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


class _Reached(Exception):
    pass


@torch.inference_mode()
def _special_tokens(network: Any, first_block: nn.Module, pixels: Tensor) -> tuple[int, int]:
    """Return how many of a block's positions are no patches, and how many positions there are.

    They stand first, as CLS, distillation and register tokens do.
    """
    shapes: list[torch.Size] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        shapes.append(first_output(output).shape)
        raise _Reached

    handle = first_block.register_forward_hook(keep)
    try:
        parameter = next(network.parameters())
        network(pixel_values=pixels.to(parameter.dtype).to(parameter.device))
    except _Reached:
        pass
    finally:
        handle.remove()
    if not shapes or len(shapes[0]) != 3:
        return 0, 0  # a grid, or nothing: the contract says so
    positions, patch = shapes[0][1], getattr(network.config, "patch_size", None)
    rows, columns = patch if isinstance(patch, tuple | list) else (patch, patch)
    if not rows or not columns:
        return 0, positions
    extra = positions - (pixels.shape[2] // rows) * (pixels.shape[3] // columns)
    if extra == 0 or extra < 0:
        return 0, positions  # patches were merged
    if extra > MOST_SPECIAL:
        raise ValueError(
            f"{type(network).__name__} adds {extra} tokens to the patches of an image: which of them stand for patches "
            "is not known"
        )
    return extra, positions


def sound_inputs(checkpoint: Any, network: Any, options: dict[str, Any]) -> tuple[Items, Collate]:
    """Return how sounds, pairs of samples and rate, become items and batches, by the checkpoint's feature extractor.

    A sound is cut into windows of one length without overlap; a last one that is shorter is left out, so that no
    position is padding.

    Raise ValueError if the checkpoint has no feature extractor.
    """
    from transformers import AutoFeatureExtractor

    extractor = _beside(checkpoint, "feature extractor", AutoFeatureExtractor, options)
    rate = extractor.sampling_rate
    window = getattr(extractor, "n_samples", None) or round(SECONDS * rate)
    name = network.main_input_name

    def items(sound: tuple[np.ndarray, int]) -> Iterator[Tensor]:
        if not isinstance(sound, tuple):
            raise ValueError(
                f"{checkpoint} reads sounds, and the data are {type(sound).__name__}: name data=audio_folder "
                "data.source.folder=<folder> model.domain=audio"
            )
        samples, its_rate = sound
        samples = resampled(samples, its_rate, rate)
        for start in range(0, len(samples) - window + 1, window):
            piece = samples[start : start + window]
            yield extractor(piece, sampling_rate=rate, return_tensors="pt")[name][0]

    return items, lambda features: Batch({name: torch.stack(features)})


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return the samples at another rate, band-limited."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = int(np.gcd(rate, wanted))
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)
