"""What is done to each token's activations on its own, before anything is measured or trained."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Preprocessing = Callable[[Tensor], Tensor]


def postln(x: Tensor) -> Tensor:
    """The paper's convention: LayerNorm over each token without affine (eps 1e-5), times sqrt(d_model).

    x is [..., d_model]; the result has norm d_model.
    """
    d_model = x.shape[-1]
    return F.layer_norm(x, (d_model,), eps=1e-5) * d_model**0.5


def raw(x: Tensor) -> Tensor:
    """The activations as they are."""
    return x


PREPROCESSINGS: dict[str, Preprocessing] = {"postln": postln, "raw": raw}
