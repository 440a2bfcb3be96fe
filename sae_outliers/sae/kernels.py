"""Sparse codes of an SAE: choosing them, their gradients, decoding. Each fast kernel has a readable dense twin.

Only the encoder's product is dense, and it is never held for more than a chunk of tokens: of its [tokens, n_features]
pre-activations a few are chosen, and everything after (decoder, gradients of both weight matrices) touches only those.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_outliers.sae import triton_kernels

# the CSR product is used for operations that are tested here; the warning would greet every user
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

PRECISIONS = ("float32", "bf16_select")
CHUNK_SIZE = {"cpu": 1 << 23, "cuda": 1 << 26}  # pre-activations in a chunk: 32 and 256 MiB of float32 ...
MIN_ROWS = 1024  # ... unless these are more: a product of 256 rows takes 1.1 to 1.2 times as long for each
COLUMNS = 128  # of a table that are gathered at a time where ...
CACHE = 1 << 24  # ... all of it takes more bytes than this, and so many columns do not
RANKED_AT_ONCE = 128  # values of a row, from which on `largest` ranks pools first
SORTED_AT_ONCE = 512  # values of a row, up to which numpy sorts them sooner than topk finds the largest ...
SORTING_THREADS = 4  # ... on so many threads at most: numpy uses one, and topk all of them
SAMPLE = 64  # tokens that tell how many of their pre-activations are positive
EXTRA_CANDIDATES = 16  # candidates beyond k that the product in bfloat16 names


class Code(NamedTuple):
    """Chosen features of each token, as rows of a CSR matrix [tokens, n_features].

    Entry e is `values[e]` of feature `indices[e]`; the entries of token t are offsets[t] to offsets[t + 1].
    """

    values: Tensor  # [entries]
    indices: Tensor  # int64 [entries]
    offsets: Tensor  # int64 [tokens + 1]

    @property
    def tokens(self) -> int:
        return len(self.offsets) - 1

    def dense(self, n_features: int) -> Tensor:
        """Return [tokens, n_features]; for tests and small codes."""
        rows = torch.repeat_interleave(self.offsets.diff())
        return self.values.new_zeros(self.tokens, n_features).index_put((rows, self.indices), self.values)

    def fired(self, n_features: int) -> Tensor:
        """Return which features have a value above 0 on some token, bool [n_features]."""
        highest = self.values.new_zeros(n_features)
        return highest.scatter_reduce_(0, self.indices, self.values.detach(), "amax") > 0


def joined(codes: Sequence[Code]) -> Code:
    """Return the codes as one, whose tokens are those of all."""
    if len(codes) == 1:
        return codes[0]
    values, indices = torch.cat([code.values for code in codes]), torch.cat([code.indices for code in codes])
    return Code(values, indices, offsets_of(torch.cat([code.offsets.diff() for code in codes])))


class ByFeature:
    """The entries of a code in the order of their features, and of tokens within a feature: found once, when needed.

    Both weight matrices' gradients are sums over a feature's entries, and share one sort.
    """

    def __init__(self, code: Code, n_features: int) -> None:
        self.indices, self.token_offsets, self.n_features = code.indices, code.offsets, n_features

    @cached_property
    def order(self) -> Tensor:
        """Return the entries in that order, int64 [entries]."""
        if self.indices.device.type == "cpu" and self.n_features <= 1 << 16:
            # numpy sorts 16 bits by radix: a tenth of torch's time for 20,000 entries, half of it for more
            return torch.from_numpy(np.argsort(self.indices.numpy().astype(np.uint16), kind="stable"))
        return torch.sort(self.indices.to(torch.int32), stable=True)[1]  # half the time of 64 bits

    @cached_property
    def tokens(self) -> Tensor:
        """Return the token of each entry in that order, int64 [entries]."""
        tokens = torch.repeat_interleave(self.token_offsets.diff(), output_size=len(self.order))
        return looked_up(tokens, self.order)

    @cached_property
    def offsets(self) -> Tensor:
        """Return where each feature's entries begin, and the last ones end, int64 [n_features + 1]."""
        every_entry = torch.ones_like(self.indices, dtype=torch.bool)
        return offsets_of(count(self.indices, every_entry, self.n_features))

    def transpose(self, values: Tensor) -> Code:
        """Return the code's transpose, [n_features, tokens], with the values [entries] of its entries."""
        return Code(looked_up(values, self.order), self.tokens, self.offsets)


def rows_of_k(values: Tensor, indices: Tensor) -> Code:
    """Return the code whose every token has k entries, from values and indices [tokens, k]."""
    tokens, k = values.shape
    return Code(values.flatten(), indices.flatten(), torch.arange(0, tokens * k + 1, k, device=values.device))


def count(indices: Tensor, chosen: Tensor, n_features: int) -> Tensor:
    """Return how many of the indices that are `chosen` (bool, of their shape) name each feature, int64 [n_features].

    On a GPU, `bincount` and a mask of `chosen` would wait for the number of those chosen.
    """
    counts = torch.zeros(n_features, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(0, indices.flatten(), chosen.flatten().long())


def offsets_of(counts: Tensor) -> Tensor:
    """Return where rows of so many entries [rows] begin, and the last one ends, [rows + 1]."""
    return F.pad(counts.cumsum(0), (1, 0))


def looked_up(table: Tensor, indices: Tensor) -> Tensor:
    """Return `table[indices]` of a table [n], in a quarter of the time on a CPU."""
    return table.index_select(0, indices.flatten()).view_as(indices)


# --- choosing ---------------------------------------------------------------------------------------------


def largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return `pre.topk(k, dim=1, sorted=False)` of pre [tokens, n], in less time where k is far below n.

    The k largest values lie in the k pools of features whose maxima are largest, so only those pools are ranked
    feature by feature, in the same way again. Feature j is in pool j % (n / pool size). Of equal values, others than
    topk's may be chosen.
    """
    tokens, n = pre.shape
    pool = 2 ** round(math.log2(math.sqrt(n / k)))  # ranks n / pool maxima and k * pool candidates: fewest here
    if n <= RANKED_AT_ONCE or pool < 4 or n % pool:
        return _ranked(pre, k)
    pooled = pre.view(tokens, pool, n // pool)
    pools = largest(pooled.amax(1), k)[1]
    candidates = pooled.gather(2, pools[:, None].expand(-1, pool, -1)).view(tokens, pool * k)
    values, places = largest(candidates, k)
    place = torch.arange(pool * k, device=pre.device)  # looked up, because to divide integers takes longer
    return values, looked_up(place // k * (n // pool), places) + pools.gather(1, looked_up(place % k, places))


def _ranked(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return `values.topk(k, dim=1, sorted=False)`: numpy sorts short rows in a fifth of topk's time on one thread."""
    if not _pays_to_sort(values):
        return values.topk(k, dim=1, sorted=False)
    rows = values.detach().numpy()
    places = np.flatnonzero(rows >= np.sort(rows, axis=1)[:, -k, None])
    if len(places) != k * len(rows):  # the k-th largest is not the only one of its value, or is not a number
        return values.topk(k, dim=1, sorted=False)
    chosen = torch.from_numpy(places).view(-1, k)
    first = torch.arange(0, values.numel(), values.shape[1])
    return looked_up(values.flatten(), chosen), chosen - first[:, None]


def _pays_to_sort(values: Tensor) -> bool:
    is_short = values.shape[1] <= SORTED_AT_ONCE and values.dtype == torch.float32
    return is_short and values.device.type == "cpu" and torch.get_num_threads() <= SORTING_THREADS


def largest_positive(pre: Tensor, k: int) -> Code:
    """Return the k largest positive pre-activations of each row of pre [tokens, n]: fewer where fewer are positive.

    Where no row has more than k of them, as where the features are dead by ReLU, none is ranked.
    """
    tokens, n = pre.shape
    if (pre[:SAMPLE] > 0).sum(1).amax() <= k:
        places = indices_of((pre > 0).flatten())
        counts = torch.bincount(places // n, minlength=tokens)
        if counts.amax() <= k:
            return Code(looked_up(pre.flatten(), places), places % n, offsets_of(counts))
    values, indices = (found.flatten() for found in largest(pre, k))
    kept = indices_of(values > 0)
    counts = torch.bincount(kept // k, minlength=tokens)
    return Code(looked_up(values, kept), looked_up(indices, kept), offsets_of(counts))


def indices_of(chosen: Tensor) -> Tensor:
    """Return the indices of what is True in a vector. Numpy takes a fifth to a twelfth of torch's time."""
    if chosen.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.nonzero()[:, 0]


def pre_activation_chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[Tensor]:
    """Yield x @ W_enc + b_enc for consecutive rows of x, float32 [rows, n_features]; each overwrites the last."""
    rows = _rows_at_once(x, W_enc)
    chunk = x.new_empty(min(rows, len(x)), W_enc.shape[1])
    for part in x.split(rows):
        yield torch.addmm(b_enc, part, W_enc, out=chunk[: len(part)])


def bfloat16_chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[Tensor]:
    """Yield `pre_activation_chunks` with the product in bfloat16, for choosing candidates.

    The mean of x goes through the encoder in float32. In bfloat16's 8 bits it would drown what varies between tokens
    where γ is large.
    """
    mean = x.mean(0)
    bias = torch.addmv(b_enc, W_enc.T, mean)
    varying, W_enc = (x - mean).bfloat16(), W_enc.bfloat16()
    rows = _rows_at_once(x, W_enc)
    low = varying.new_empty(min(rows, len(x)), W_enc.shape[1])
    chunk = torch.empty_like(low, dtype=torch.float32)
    for part in varying.split(rows):
        torch.mm(part, W_enc, out=low[: len(part)])
        yield torch.add(chunk[: len(part)].copy_(low[: len(part)]), bias, out=chunk[: len(part)])


def _rows_at_once(x: Tensor, W_enc: Tensor) -> int:
    return max(MIN_ROWS, CHUNK_SIZE[x.device.type] // W_enc.shape[1])


@torch.no_grad()
def choose_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, precision: str = "float32") -> Code:
    """Choose the k largest pre-activations of each row of x [tokens, d_model] (b_dec subtracted), positive or not.

    With `bf16_select`, a product in bfloat16 names k + EXTRA_CANDIDATES candidates; their values and the choice among
    them are float32.
    """
    if precision == "float32":
        found = [largest(pre, k) for pre in pre_activation_chunks(x, W_enc, b_enc)]
        return rows_of_k(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    width = min(k + EXTRA_CANDIDATES, W_enc.shape[1])
    candidates = torch.cat([largest(pre, width)[1] for pre in bfloat16_chunks(x, W_enc, b_enc)])
    code = rows_of_k(x.new_empty(candidates.shape), candidates)
    exact = (products(x, W_enc.T, code) + looked_up(b_enc, code.indices)).view_as(candidates)
    values, places = exact.topk(k, dim=1, sorted=False)
    return rows_of_k(values, candidates.gather(1, places))


@torch.no_grad()
def choose_positive(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    """Choose the k largest positive pre-activations of each row of x [tokens, d_model], fewer where fewer are positive.

    b_dec is subtracted from x.
    """
    return joined([largest_positive(pre, k) for pre in pre_activation_chunks(x, W_enc, b_enc)])


@torch.no_grad()
def choose_batch_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    """Choose the k * tokens largest pre-activations of the batch (Bussmann et al. 2024); x has b_dec subtracted."""
    wanted = k * len(x)
    for enough in (1.5, math.inf):  # a guess from a sample of tokens; should it be too high, every feature
        parts, tokens, first, floor = [], [], 0, None
        for pre in pre_activation_chunks(x, W_enc, b_enc):
            if floor is None:
                floor = _floor(pre, k, enough)
            rows, features = (pre >= floor).nonzero(as_tuple=True)
            parts.append((pre[rows, features], features))
            tokens.append(rows + first)
            first += len(pre)
        values, indices = (torch.cat(column) for column in zip(*parts, strict=True))
        if len(values) >= wanted:
            break
    kept = values.topk(wanted, sorted=False).indices.sort().values
    offsets = torch.searchsorted(looked_up(torch.cat(tokens), kept), torch.arange(len(x) + 1, device=x.device))
    return Code(looked_up(values, kept), looked_up(indices, kept), offsets)


def _floor(pre: Tensor, k: int, enough: float) -> Tensor:
    """Return a value that about `enough` * k pre-activations of a token exceed, from a few tokens; -inf for all."""
    if enough * k >= pre.shape[1]:
        return pre.new_full((), -math.inf)
    sample = pre[:: max(1, len(pre) // 64)]
    return sample.flatten().topk(int(enough * k * len(sample)), sorted=False).values.amin()


@torch.no_grad()
def choose_group_max(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Code:
    """Choose the largest pre-activation in each of k groups of neighbouring features; x has b_dec subtracted."""
    n = W_enc.shape[1]
    found = [pre.view(len(pre), k, n // k).max(2) for pre in pre_activation_chunks(x, W_enc, b_enc)]
    values, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows_of_k(values, places + torch.arange(0, n, n // k, device=x.device))


# --- products with a sparse code ------------------------------------------------------------------------


def products(x: Tensor, W: Tensor, code: Code) -> Tensor:
    """Return x[t] · W[j] for each entry (t, j) of the code, [entries]; x is [tokens, d], W [n_features, d]."""
    if x.dtype not in (torch.float32, torch.float64):  # neither path below takes 16-bit types
        return products(x.float(), W.float(), code).to(x.dtype)
    if triton_kernels.usable(x):
        return triton_kernels.products(x, W, code.indices, code.offsets)
    # MKL's sparse products take 32-bit indices; torch would convert them
    offsets, indices = code.offsets.to(torch.int32), code.indices.to(torch.int32)
    zeros, shape = x.new_zeros(len(indices)), (code.tokens, len(W))
    places = torch.sparse_csr_tensor(offsets, indices, zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(places, x, W.T, beta=0).values()


def weighted_rows(code: Code, W: Tensor) -> Tensor:
    """Return code @ W, [tokens, d], for W [n_features, d]."""
    if triton_kernels.usable(W):
        return triton_kernels.weighted_rows(code.values, code.indices, code.offsets, W)
    return _weighted_rows_by_columns(code, W) if _pays_by_columns(W) else _bags(code, code.indices, W)


def _pays_by_columns(W: Tensor) -> bool:
    rows, d = W.shape
    fits = rows * COLUMNS * W.itemsize <= CACHE < W.nbytes
    return W.device.type == "cpu" and fits and d % COLUMNS == 0 and W.is_contiguous()


def _weighted_rows_by_columns(code: Code, W: Tensor) -> Tensor:
    """Return the same, some columns after the others: rows of W that lie in the memory are gathered from a cache."""
    blocks = W.shape[1] // COLUMNS
    parts = W.view(-1, COLUMNS)  # row j of W is rows j * blocks, ... of these
    indices, result = code.indices * blocks, W.new_empty(code.tokens, blocks, COLUMNS)
    for block in range(blocks):
        result[:, block] = _bags(code, indices + block, parts)
    return result.view(code.tokens, -1)


def _bags(code: Code, indices: Tensor, W: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, W, code.offsets, per_sample_weights=code.values, mode="sum", include_last_offset=True
    )


def sums_by_feature(transposed: Code) -> Tensor:
    """Return the sum of each row's values, [rows]; unlike `index_add_`, in an order that does not vary on a GPU."""
    return torch.segment_reduce(transposed.values, "sum", offsets=transposed.offsets, unsafe=True)


# --- the same with gradients ------------------------------------------------------------------------------


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        values: Tensor,
        by_feature: ByFeature,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_dec)
        ctx.by_feature = by_feature
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, b_dec = ctx.saved_tensors
        grad = ctx.by_feature.transpose(grads[0])
        grad_W_enc = weighted_rows(grad, x - b_dec).T
        grad_b_enc = sums_by_feature(grad)
        # b_dec shifts every token alike, so its gradient needs only the gradients summed over the tokens
        return None, grad_W_enc, grad_b_enc, -(W_enc @ grad_b_enc), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, offsets: Tensor, W_dec: Tensor, by_feature: ByFeature
    ) -> Tensor:
        ctx.save_for_backward(values, indices, offsets, W_dec)
        ctx.by_feature = by_feature
        return weighted_rows(Code(values, indices, offsets), W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, offsets, W_dec = ctx.saved_tensors
        grad_values = products(grads[0], W_dec, Code(values, indices, offsets))
        return grad_values, None, None, weighted_rows(ctx.by_feature.transpose(values), grads[0]), None


def with_gradient(
    code: Code, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, by_feature: ByFeature | None = None
) -> Code:
    """Return the code with its values (x - b_dec) @ W_enc + b_enc differentiable in the weights.

    `code` must hold those values already. x is data and gets no gradient. `by_feature` is the code's, where `decode`
    is to share it.
    """
    by_feature = by_feature or ByFeature(code, W_enc.shape[1])
    return code._replace(values=_PreActivations.apply(x, W_enc, b_enc, b_dec, code.values, by_feature))


def decode(code: Code, W_dec: Tensor, by_feature: ByFeature | None = None) -> Tensor:
    """Return the sum of values times decoder rows, [tokens, d_model], differentiable in the values and W_dec."""
    return _Decode.apply(*code, W_dec, by_feature or ByFeature(code, len(W_dec)))


# --- readable twins -----------------------------------------------------------------------------------------


def pre_activations_reference(code: Code, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Code:
    """Return what `with_gradient` does, by way of all pre-activations, in plain autograd."""
    rows = torch.repeat_interleave(code.offsets.diff())
    return code._replace(values=((x - b_dec) @ W_enc + b_enc)[rows, code.indices])


def decode_reference(code: Code, W_dec: Tensor) -> Tensor:
    """Return what `decode` does, by way of the dense code."""
    return code.dense(len(W_dec)) @ W_dec
