"""Pretrained networks. One module per way of loading them; each `load` returns a `Backbone`."""

from torch import library


def _make_torchvision_importable() -> None:
    """Declare the two operators without which `import torchvision` fails if torch is a CPU build.

    PyPI's torchvision for Linux is a CUDA build. With a CPU build of torch its shared library does not load, and
    registering its fake kernels then raises "operator torchvision::nms does not exist", so that timm and transformers
    cannot be imported either. Declaring the operators without implementing them is enough for the import; this project
    never calls them, and timm's models and transforms need nothing else from that library.
    """
    try:
        import torchvision
    except RuntimeError:
        _OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    except ImportError:
        pass  # transformers does not need torchvision, and timm names it in its own error


_OPERATORS = library.Library("torchvision", "FRAGMENT")  # a definition is removed with this object
_make_torchvision_importable()
