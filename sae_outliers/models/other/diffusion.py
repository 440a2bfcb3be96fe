"""Stable Diffusion 3: the image stream of its transformer, part of the way through denoising.

The input of a diffusion transformer depends on the noise level. Here the pipeline's own sampler starts from pure noise
and takes the first `at_step` of `steps` denoising steps for a prompt; the activations are those of the forward pass for
the next step. There is no classifier-free guidance (a second forward pass with an empty prompt), and no image dataset
is needed.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.hub_access import not_loaded


def load(
    checkpoint: str | Path,
    steps: int = 28,
    at_step: int = 14,
    size: int = 1024,
    text_device: str = "cpu",
    **options: Any,
) -> Backbone:
    """Return a Stable Diffusion 3 transformer in float32; a document is a prompt, and its only item is an image.

    Args:
        checkpoint: a hub id, or a local folder that a `StableDiffusion3Pipeline` was saved to.
        steps: denoising steps from noise to image, which set the noise levels.
        at_step: steps taken before the activations are captured; 0: captured on pure noise.
        size: side of the image in pixels; a token is a patch of 16 × 16.
        text_device: where prompts are encoded. The CPU by default, because Stable Diffusion 3.5's encoders take 22 GB.
        options: for `from_pretrained` (`revision`, `cache_dir`).

    Raises:
        FileNotFoundError: the checkpoint does not exist, or the hub denies access to it.
        ModuleNotFoundError: diffusers is not installed.
        ValueError: there is no such step, or the image cannot be cut into patches.
    """
    if not 0 <= at_step < steps:
        raise ValueError(f"at_step={at_step} does not exist: denoising in {steps} steps has steps 0 to {steps - 1}")
    pipeline = _pipeline(checkpoint, options)
    patch = pipeline.vae_scale_factor * pipeline.patch_size
    if size % patch:
        raise ValueError(f"size={size} pixels cannot be cut into patches of {patch}")
    transformer = pipeline.transformer.eval()
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
        encoder.to(text_device)
    denoising = Denoising(pipeline, steps, at_step, size // pipeline.vae_scale_factor, text_device)
    return Backbone(
        module=transformer,
        blocks=list(transformer.transformer_blocks),
        items=lambda prompt: [prompt],
        collate=denoising.collate,
        hidden=image_stream,
    )


def image_stream(output: tuple[Tensor | None, Tensor]) -> Tensor:
    """Return the image states, [images, patches, d_model], of a block's (text, image) output."""
    return output[1]


@dataclass(frozen=True)
class Denoising:
    """The sampler: turns prompts into the transformer's input at one step.

    Attributes:
        pipeline: a `StableDiffusion3Pipeline`; its VAE is not used.
        steps, at_step, text_device: see `load`.
        side: side of the latent image.
    """

    pipeline: Any
    steps: int
    at_step: int
    side: int
    text_device: str

    @torch.inference_mode()
    def collate(self, prompts: list[str]) -> Batch:
        """Return the inputs of the forward pass that follows `at_step` steps; every patch is a token."""
        transformer, scheduler = self.pipeline.transformer, self.pipeline.scheduler
        text, pooled = self._encode(prompts)
        scheduler.set_timesteps(self.steps, device=transformer.device)

        def inputs(latents: Tensor, time: Tensor) -> dict[str, Tensor]:
            return {
                "hidden_states": latents,
                "timestep": time.expand(len(prompts)),
                "encoder_hidden_states": text,
                "pooled_projections": pooled,
            }

        latents = self._noise(prompts)
        for time in scheduler.timesteps[: self.at_step]:
            velocity = transformer(**inputs(latents, time), return_dict=False)[0]
            latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
        return Batch(inputs(latents, scheduler.timesteps[self.at_step]))

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Return [prompts, text positions, joint width] and [prompts, pooled width] on the transformer's device."""
        device = self.pipeline.transformer.device
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=torch.device(self.text_device),
            do_classifier_free_guidance=False,
        )
        return text.to(device), pooled.to(device)

    def _noise(self, prompts: list[str]) -> Tensor:
        """Return [prompts, channels, side, side]; a prompt's noise does not depend on the device or the batch."""
        shape = (self.pipeline.transformer.config.in_channels, self.side, self.side)
        seeds = (torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts)
        noise = torch.stack([torch.randn(shape, generator=seed) for seed in seeds])
        return noise.to(self.pipeline.transformer.device)


def _pipeline(checkpoint: str | Path, options: dict[str, Any]) -> Any:
    """Load the pipeline without its VAE, in float32 instead of the 16 bits that it is stored in."""
    try:
        from diffusers import StableDiffusion3Pipeline
    except ImportError as error:
        raise ModuleNotFoundError("diffusers is missing: run `pip install 'sae-outliers[diffusion]'`") from error
    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint, vae=None, dtype=torch.float32, **options)
    except OSError as error:
        raise not_loaded(checkpoint, "diffusers", error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
