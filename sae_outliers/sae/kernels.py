"""TopK encode and decode whose backward touches k of the n_features rows, and their readable dense twins.

A sparse code is (values, indices), both [tokens, k]; [tokens, n_features] exists only as the encoder's product in
the forward pass. The weight gradients are products of the transposed code, as a CSR matrix, with a dense one.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# the CSR product is used for one operation that is tested here; the warning would greet every user
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)


def topk_encode_reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top-k of relu((x - b_dec) @ W_enc + b_enc): values and indices [tokens, k], by plain autograd.

    x is [tokens, d_model], W_enc [d_model, n_features], b_enc [n_features], b_dec [d_model].
    """
    values, indices = ((x - b_dec) @ W_enc + b_enc).topk(k, dim=1, sorted=False)
    return values.relu(), indices


def decode_reference(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of values times decoder rows, [tokens, d_model], by way of the dense code. W_dec is [n_features, d_model]."""
    dense = torch.zeros(len(values), len(W_dec), dtype=values.dtype, device=values.device)
    return dense.scatter(1, indices, values) @ W_dec


def transposed_product(values: Tensor, indices: Tensor, n_features: int, dense: Tensor) -> Tensor:
    """codeᵀ @ dense, [n_features, d], for the code (values, indices) and dense [tokens, d]."""
    tokens, k = indices.shape
    order = indices.flatten().argsort(stable=True)
    rows = torch.bincount(indices.flatten(), minlength=n_features).cumsum(0)
    starts = F.pad(rows, (1, 0)).to(torch.int32)
    columns = (order // k).to(torch.int32)
    code = torch.sparse_csr_tensor(
        starts, columns, values.flatten()[order], (n_features, tokens), check_invariants=False
    )
    return code @ dense


class _TopKEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
        centered = x - b_dec
        values, indices = torch.addmm(b_enc, centered, W_enc).topk(k, dim=1, sorted=False)
        values = values.relu_()
        ctx.save_for_backward(centered, W_enc, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centered, W_enc, values, indices = ctx.saved_tensors
        grad = grads[0] * (values > 0)
        grad_W_enc = transposed_product(grad, indices, W_enc.shape[1], centered).T
        grad_b_enc = torch.zeros(W_enc.shape[1], dtype=grad.dtype, device=grad.device)
        grad_b_enc.index_add_(0, indices.flatten(), grad.flatten())
        # b_dec shifts every token alike, so its gradient needs only the gradients summed over the tokens
        return None, grad_W_enc, grad_b_enc, -(W_enc @ grad_b_enc), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W_dec)
        return F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec = ctx.saved_tensors
        (grad,) = grads
        # torch has no public operator for the k products grad·W_dec[j]; embedding_bag's own backward is one
        with torch.enable_grad():
            weights = values.detach().requires_grad_()
            out = F.embedding_bag(indices, W_dec.detach(), per_sample_weights=weights, mode="sum")
        (grad_values,) = torch.autograd.grad(out, weights, grad)
        return grad_values, None, transposed_product(values, indices, len(W_dec), grad)


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk_encode_reference` with a sparse backward; x is data and gets no gradient."""
    return _TopKEncode.apply(x, W_enc, b_enc, b_dec, k)


def decode(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """`decode_reference` without the dense code, forward or backward."""
    return _Decode.apply(values, indices, W_dec)
