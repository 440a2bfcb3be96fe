"""Pretrained networks. One module per way of loading them; each `load` returns a `Backbone`."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any


class _BeforeTorchvision(MetaPathFinder):
    """Sees torchvision coming, whoever imports it: it is not loaded here, for it brings torch._dynamo and takes 1 s."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Find nothing; the next finder does."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()


def _declare_operators() -> None:
    """Declare the two operators without which `import torchvision` fails if torch is a CPU build.

    PyPI's torchvision for Linux is a CUDA build. With a CPU build of torch its shared library does not load, and
    registering its fake kernels then raises "operator torchvision::nms does not exist", so that timm and transformers
    cannot be imported either. Declaring the operators without implementing them is enough for the import; this project
    never calls them, and timm's models and transforms need nothing else from that library.
    """
    from torch import library, ops

    found = PathFinder.find_spec("torchvision")
    if found is None or found.origin is None:
        return  # transformers does not need torchvision, and timm names it in its own error
    try:
        ops.load_library(Path(found.origin).with_name("_C.so"))  # as torchvision does
    except OSError:
        operators = library.Library("torchvision", "FRAGMENT")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)


_KEPT: list[Any] = []  # a definition is removed with its object
sys.meta_path.insert(0, _BeforeTorchvision())
