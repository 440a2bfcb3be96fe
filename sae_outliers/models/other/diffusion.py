"""Stable Diffusion 3: the image stream of its transformer, in the middle of denoising an image from a prompt.

A diffusion transformer sees a noisy image, and which one depends on how far denoising has come. Here the pipeline's own
sampler starts from pure noise and makes the first `at_step` of `steps` steps for the prompt; the forward pass that
would make the next step is the one whose activations are taken. There is no guidance, which would be a second forward
pass for an empty prompt, and no photograph is needed.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_outliers.models.backbone import Backbone, Batch


def load(
    checkpoint: str | Path,
    steps: int = 28,
    at_step: int = 14,
    size: int = 1024,
    text_device: str = "cpu",
    **options: Any,
) -> Backbone:
    """A Stable Diffusion 3 transformer in float32; a document is a prompt, and an item one image for it.

    Args:
        checkpoint: a hub id, or a local folder that a `StableDiffusion3Pipeline` was saved to.
        steps: of the whole way from noise to image, which sets the noise levels.
        at_step: steps made before the activations are taken; 0 takes them on pure noise.
        size: side of the image in pixels; a token is a square of 16 of them.
        text_device: where prompts are encoded. Stable Diffusion 3.5's encoders take 22 GB.
        options: for `from_pretrained` (`revision`, `cache_dir`).

    Raises:
        FileNotFoundError: the checkpoint is not there, or the hub refuses it.
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
    """Of a block's text and image states the latter, [images, patches, d_model]."""
    return output[1]


@dataclass(frozen=True)
class Denoising:
    """Makes of prompts what the transformer sees at one step.

    Attributes:
        pipeline: a `StableDiffusion3Pipeline`; its VAE is not used.
        steps, at_step, text_device: as `load` has them.
        side: of the latent image.
    """

    pipeline: Any
    steps: int
    at_step: int
    side: int
    text_device: str

    @torch.inference_mode()
    def collate(self, prompts: list[str]) -> Batch:
        """Inputs of the forward pass that follows `at_step` steps; all patches of all images are tokens."""
        transformer, scheduler = self.pipeline.transformer, self.pipeline.scheduler
        text, pooled = self._encoded(prompts)
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

    def _encoded(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts as [prompts, text positions, joint width] and [prompts, pooled width], where the transformer is."""
        device, there = self.pipeline.transformer.device, torch.device(self.text_device)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, prompt_2=None, prompt_3=None, device=there, do_classifier_free_guidance=False
        )
        return text.to(device), pooled.to(device)

    def _noise(self, prompts: list[str]) -> Tensor:
        """[prompts, channels, side, side]; a prompt's noise is always the same, on every device and in any batch."""
        shape = (self.pipeline.transformer.config.in_channels, self.side, self.side)
        seeds = (torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts)
        noise = torch.stack([torch.randn(shape, generator=seed) for seed in seeds])
        return noise.to(self.pipeline.transformer.device)


def _pipeline(checkpoint: str | Path, options: dict[str, Any]) -> Any:
    """The pipeline without its VAE, in float32: released in 16 bits, it would compute in them."""
    try:
        from diffusers import StableDiffusion3Pipeline
    except ImportError as error:
        raise ModuleNotFoundError("diffusers is missing: run `pip install 'sae-outliers[diffusion]'`") from error
    try:
        pipeline = StableDiffusion3Pipeline.from_pretrained(checkpoint, vae=None, dtype=torch.float32, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"{checkpoint} could not be loaded. If the hub gives it out on request only, accept the licence at "
            f"https://huggingface.co/{checkpoint}, log in with `hf auth login`, and try again; or give a folder with a "
            f"copy as model.loader.checkpoint=. diffusers says: {str(error).strip().splitlines()[0]}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
