"""Pretrained networks: one module per way of loading. Each `load` returns a `Backbone`."""

from torch import library


def _make_torchvision_importable() -> None:
    """Declare the two operators whose absence kills `import torchvision` beside a torch without CUDA.

    PyPI's torchvision for Linux is a CUDA build. Beside a CPU torch its shared library does not load, and
    registering its fake kernels then raises "operator torchvision::nms does not exist", which takes timm and
    transformers down with it. Declared but not implemented, the operators satisfy the import; nothing here calls
    them, and timm's models and transforms need no other part of that library.
    """
    try:
        import torchvision
    except RuntimeError:
        _OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    except ImportError:
        pass  # no torchvision: transformers does without, and timm says what it needs


_OPERATORS = library.Library("torchvision", "FRAGMENT")  # a definition lives as long as this object
_make_torchvision_importable()
