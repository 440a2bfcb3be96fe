"""The study's four DINO models and other timm models: small versions of the same class through the real loader."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sae_outliers.activations.capture import capture
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.vision import timm as timm_vision
from sae_outliers.runs.layer_spec import last_layer, layers_of
from tests.conftest import composed

import timm  # isort: skip  # importable beside a CPU torch only after sae_outliers.models

DINO = ("dinov2", "dinov2_large", "dinov3_small", "dinov3")
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 64, "num_heads": 2}
SIDE = {14: 56, 16: 64}  # pixels of 4 × 4 patches


def small(model: str) -> dict[str, Any]:
    """Return the loader's arguments of a model in conf/, with small sizes."""
    loader = composed(f"model={model}").model.loader
    architecture = loader.architecture
    return {"architecture": architecture, "img_size": SIDE[14 if "patch14" in architecture else 16], **SMALL}


def saved(path: Path, architecture: str, **options: Any) -> Path:
    """Write random weights in place of the hub's."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **options)
    for parameter in model.parameters():  # layer scales start near 0, and would hide a block's work
        nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), path)
    return path


def photograph(side: int = 80) -> Image.Image:
    pixels = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("model", DINO)
def test_each_layer_is_what_timm_gives_for_that_block(model: str, tmp_path: Path) -> None:
    options = small(model)
    backbone = timm_vision.load(weights=saved(tmp_path / "small.safetensors", **options), **options)
    batch = next(backbone.batches([photograph(), photograph(60)], 2))
    network: Any = backbone.module
    with torch.inference_mode():
        expected = network.forward_intermediates(
            **batch.inputs, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
    ours = capture(backbone, batch, [1, 2, 3])
    assert len(expected) == len(backbone.blocks) == 3
    for layer, (patches, prefix) in enumerate(expected, start=1):
        torch.testing.assert_close(ours[layer], torch.cat([prefix, patches], 1), rtol=0, atol=0)
    assert not torch.equal(ours[1], ours[2])
    assert ours[1].dtype == torch.float32
    assert ours[1].shape == (2, 16 + network.num_prefix_tokens, 64)


@pytest.mark.parametrize(("model", "n_special"), zip(DINO, (1, 1, 5, 5), strict=True))
def test_cls_and_registers_are_special_and_stand_first(model: str, n_special: int, tmp_path: Path) -> None:
    options = small(model)
    backbone = timm_vision.load(weights=saved(tmp_path / "small.safetensors", **options), **options)
    batch = next(backbone.batches([photograph(), photograph()], 2))
    assert batch.mask is None
    assert batch.special is not None
    assert batch.special.tolist() == [[True] * n_special + [False] * 16] * 2


def test_blocks_after_the_last_wanted_layer_do_not_run(tmp_path: Path) -> None:
    options = small("dinov3")
    backbone = timm_vision.load(weights=saved(tmp_path / "small.safetensors", **options), **options)
    ran: list[int] = []
    for layer, block in enumerate(backbone.blocks, start=1):
        block.register_forward_hook(lambda *_args, layer=layer: ran.append(layer))
    capture(backbone, next(backbone.batches([photograph()], 1)), [1, 2])
    assert ran == [1, 2]


@pytest.mark.parametrize(("model", "width", "blocks", "specials"), [
    ("dinov2", 768, 12, 1), ("dinov2_large", 1024, 24, 1), ("dinov3_small", 768, 12, 5), ("dinov3", 4096, 40, 5),
])  # fmt: skip
def test_at_full_size_they_are_as_the_config_says(model: str, width: int, blocks: int, specials: int) -> None:
    config = composed(f"model={model}", "layer=all").model
    size = {"img_size": config.loader.img_size}
    with torch.device("meta"):
        network: Any = timm.create_model(config.loader.architecture, **size)
    assert timm_vision.count_blocks(config.loader.architecture, **size) == blocks
    assert layers_of(config, "all") == list(range(1, blocks))
    assert config.d_model == network.embed_dim == width
    assert network.num_prefix_tokens == specials
    assert network.patch_embed.num_patches == 256
    assert config.parameters == pytest.approx(sum(p.numel() for p in network.parameters()), rel=1e-3)
    assert min(config.gpu_batch_size) * 1e9 > 4 * config.parameters


def test_the_pinned_commit_is_the_one_that_timm_reads(tmp_path: Path) -> None:
    """Only this commit is in the hub's cache, so that a request for any other would need the network."""
    config = composed("model=dinov2").model.loader
    options = small("dinov2")
    hub_id = timm.get_pretrained_cfg(config.architecture).hf_hub_id
    snapshot = tmp_path / f"models--{hub_id.replace('/', '--')}" / "snapshots" / config.revision
    snapshot.mkdir(parents=True)
    file = saved(snapshot / "model.safetensors", **options)
    backbone = timm_vision.load(revision=config.revision, cache_dir=str(tmp_path), **options)
    expected = timm.models.load_state_dict(str(file))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in backbone.module.state_dict().items())


@pytest.mark.parametrize(("name", "depth", "width", "cells"), [
    ("resnet18.a1_in1k", 8, 512, 2 * 2),  # four parts, layer1 to layer4
    ("convnext_atto.d2_in1k", 12, 320, 2 * 2),  # stages with `blocks` inside
    ("swin_tiny_patch4_window7_224.ms_in1k", 12, 768, 7 * 7),  # a grid with the channels last
    ("tf_efficientnet_lite0.in1k", 16, 320, 2 * 2),
    ("vit_tiny_patch16_224.augreg_in21k", 12, 192, 14 * 14 + 1),
])  # fmt: skip
def test_any_timm_model_by_name(name: str, depth: int, width: int, cells: int, tmp_path: Path) -> None:
    config = composed("model=timm", f"name={name}", "layer=all").model
    assert config.name == name
    assert last_layer(config) == depth
    network = timm.create_model(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone = timm_vision.load(name, tmp_path / "weights.safetensors")
    (batch,) = backbone.batches([photograph()], 1)
    if cells == 4:  # conv nets take any size, and small is fast
        batch.inputs["x"] = batch.inputs["x"][..., :64, :64]
    output = capture(backbone, batch, [depth])[depth]
    assert output.shape == (1, cells, width)


def test_a_grid_is_read_row_by_row_in_either_layout() -> None:
    grid = torch.arange(24.0).reshape(1, 2, 3, 4)  # 2 channels, 3 rows, 4 columns
    last = grid.permute(0, 2, 3, 1)
    assert timm_vision.hidden(grid)[0, 5].tolist() == [5.0, 17.0]
    assert torch.equal(timm_vision.hidden(last, layout="NHWC"), timm_vision.hidden(grid))


def test_a_name_that_timm_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"timm .* has no model 'vit_huge_nothing'"):
        timm_vision.count_blocks("vit_huge_nothing")


@pytest.mark.parametrize(("name", "blocks", "message"), [
    ("densenet121", "stages", "DenseNet has no part 'stages': .*its parts are features"),
    ("resnet18", "layer9", "ResNet has no part 'layer9'"),
])  # fmt: skip
def test_blocks_that_are_not_there(name: str, blocks: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm_vision.count_blocks(name, blocks)
    assert timm_vision.count_blocks("densenet121", "features.denseblock1") == 6


@pytest.mark.parametrize(("name", "depth", "width", "positions"), [
    ("tiny_vit_5m_224", 12, 320, 7 * 7),  # a grid with the channels last, which says nothing of it
    ("convmixer_768_32", 32, 768, 32 * 32),  # each block a sequence of single layers
    ("swinv2_tiny_window8_256", 12, 768, 8 * 8),  # stages with a ModuleList inside
    ("xcit_nano_12_p16_224", 12, 128, 14 * 14),  # CLS is added after the blocks
    ("densenet121", 5, 1024, 7 * 7),  # the stages that feature_info names
])  # fmt: skip
def test_models_that_keep_their_blocks_in_their_own_way(name: str, depth: int, width: int, positions: int) -> None:
    with torch.device("meta"):
        network: Any = timm.create_model(name)
    size = network.pretrained_cfg["input_size"]
    widths = timm_vision.stage_widths(network)
    blocks = timm_vision.find_blocks(network)
    grids = partial(timm_vision.hidden, widths=widths)
    assert len(blocks) == depth
    backbone = Backbone(network.eval(), blocks, lambda _: [], lambda _: Batch({}), grids)
    batch = Batch({"x": torch.zeros(2, *size, device="meta")})
    outputs = capture(backbone, batch, range(1, depth + 1))
    assert outputs[depth].shape == (2, positions, width)
    assert {output.shape[2] for output in outputs.values()} <= widths | {network.num_features}


def test_a_model_that_takes_images_of_any_size_is_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.safetensors", "naflexvit_base_patch16_gap", **SMALL)
    with pytest.raises(ValueError, match="NaFlexVit does not say how many patches"):
        timm_vision.load("naflexvit_base_patch16_gap", weights, **SMALL)
