"""Stable Diffusion 3 from a folder, with a tiny pipeline of all parts except the VAE."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor, nn

from sae_outliers.activations.capture import capture
from sae_outliers.models.other import diffusion
from tests.conftest import composed

pytest.importorskip("diffusers", reason="diffusers is not installed: `pip install 'sae-outliers[diffusion]'`")

PROMPTS = ["a cat", "a red cat on the mat"]
LETTERS = sorted(set("".join(PROMPTS).replace(" ", "")))
SIZE = {"steps": 4, "size": 64}  # 4 × 4 tokens


def clip(folder: Path) -> Any:
    """Return a text encoder, and a tokenizer read from the same files as in the release."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(vocab_size=len(tokens), projection_dim=16, **sizes, **ids)
    return CLIPTextModelWithProjection(config), CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((piece, -2.0) for piece in ["▁", *LETTERS])]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config), T5TokenizerFast(vocab=pieces, extra_ids=0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizers")
    widths = {"joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32}
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
        pos_embed_max_size=16, qk_norm="rms_norm", **widths,
    )  # fmt: skip
    for parameter in transformer.parameters():  # as made, the last layer is 0, and no step would change anything
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    parts = {}
    for suffix, (encoder, tokenizer) in {"": clip(folder / "a"), "_2": clip(folder / "b"), "_3": t5()}.items():
        parts |= {f"text_encoder{suffix}": encoder, f"tokenizer{suffix}": tokenizer}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=None, **parts)
    for part in (transformer, made.text_encoder, made.text_encoder_2, made.text_encoder_3):
        part.eval()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path


def noise(prompts: list[str]) -> Tensor:
    seeds = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
    return torch.stack([torch.randn(4, 8, 8, generator=seed) for seed in seeds])


def pipelines_own_states(pipeline: Any, prompts: list[str], at_step: int) -> list[Tensor]:
    """Return the image states after each block at one step of a full run of the pipeline."""
    steps: list[list[Tensor]] = []
    blocks = pipeline.transformer.transformer_blocks
    hooks = [pipeline.transformer.register_forward_pre_hook(lambda *_: steps.append([]))]
    hooks += [block.register_forward_hook(lambda *args: steps[-1].append(args[2][1])) for block in blocks]
    pipeline(
        prompts, height=64, width=64, num_inference_steps=4, guidance_scale=1.0, latents=noise(prompts),
        output_type="latent",
    )  # fmt: skip
    for hook in hooks:
        hook.remove()
    assert len(steps) == 4
    return steps[at_step]


@pytest.mark.parametrize("at_step", [0, 2, 3])
def test_states_are_those_of_the_pipelines_own_run_at_that_step(pipeline: Any, folder: Path, at_step: int) -> None:
    backbone = diffusion.load(folder, at_step=at_step, **SIZE)
    (batch,) = backbone.batches(PROMPTS, 2)
    ours = capture(backbone, batch, [1, 2, 3, 4])
    expected = pipelines_own_states(pipeline, PROMPTS, at_step)
    assert len(backbone.blocks) == 4
    assert batch.mask is None
    assert batch.special is None
    for layer, states in enumerate(expected, start=1):
        assert ours[layer].shape == (2, 4 * 4, 32)
        torch.testing.assert_close(ours[layer], states, rtol=1e-4, atol=1e-4)
    other = pipelines_own_states(pipeline, PROMPTS, 1)
    assert not torch.allclose(ours[2], other[1], atol=1e-2)


def test_an_image_is_the_same_in_any_batch(folder: Path) -> None:
    backbone = diffusion.load(folder, at_step=2, **SIZE)
    together = capture(backbone, next(backbone.batches(PROMPTS, 2)), [3])[3]
    alone = [capture(backbone, batch, [3])[3][0] for batch in backbone.batches(PROMPTS, 1)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_blocks_after_the_last_wanted_layer_do_not_run(folder: Path) -> None:
    backbone = diffusion.load(folder, at_step=1, **SIZE)
    (batch,) = backbone.batches(PROMPTS, 2)
    ran: list[int] = []
    for layer, block in enumerate(backbone.blocks, start=1):
        block.register_forward_hook(lambda *_args, layer=layer: ran.append(layer))
    capture(backbone, batch, [1, 2])
    assert ran == [1, 2]


def test_weights_are_read_in_float32_and_in_the_layout_of_the_release(folder: Path, tmp_path: Path) -> None:
    """In the release the weights have 16 bits, and the third tokenizer has its class name of transformers 4."""
    from diffusers import StableDiffusion3Pipeline

    half = StableDiffusion3Pipeline.from_pretrained(folder, vae=None, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    index = json.loads((tmp_path / "half/model_index.json").read_text())
    index["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
    (tmp_path / "half/model_index.json").write_text(json.dumps(index))
    backbone = diffusion.load(tmp_path / "half", at_step=1, **SIZE)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    (batch,) = backbone.batches(PROMPTS, 2)
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.float32}


def test_the_noise_level_of_the_config(pipeline: Any) -> None:
    """The released scheduler shifts by 3, as this one does."""
    loader = composed("model=stable-diffusion-3-5-large").model.loader
    pipeline.scheduler.set_timesteps(loader.steps)
    assert float(pipeline.scheduler.sigmas[loader.at_step]) == pytest.approx(0.74, abs=0.005)


def test_the_configs_figures_are_those_of_the_released_sizes() -> None:
    from diffusers import SD3Transformer2DModel

    model = composed("model=stable-diffusion-3-5-large").model
    with torch.device("meta"):
        network: Any = SD3Transformer2DModel(
            sample_size=128, num_layers=38, attention_head_dim=64, num_attention_heads=38, joint_attention_dim=4096,
            caption_projection_dim=2432, pooled_projection_dim=2048, pos_embed_max_size=192, qk_norm="rms_norm",
        )  # fmt: skip
    assert network.inner_dim == model.d_model == 2432
    assert model.last_layer == len(network.transformer_blocks) - 1 == 37
    assert model.parameters == pytest.approx(sum(p.numel() for p in network.parameters()), rel=1e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 4, "at_step": 4, "size": 64}, "at_step=4 does not exist: denoising in 4 steps has steps 0 to 3"),
    ({"steps": 4, "at_step": 1, "size": 60}, "size=60 pixels cannot be cut into patches of 16"),
])  # fmt: skip
def test_steps_and_sizes_that_do_not_exist(folder: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.load(folder, **options)


def test_what_to_do_where_the_hub_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"https://huggingface.co/a-lab/gated, log in with `hf auth login`"):
        diffusion.load("a-lab/gated", cache_dir=tmp_path)


def test_a_folder_that_lacks_a_part_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "part")
    shutil.rmtree(tmp_path / "part/transformer")
    with pytest.raises(FileNotFoundError, match="part could not be loaded"):
        diffusion.load(tmp_path / "part")
