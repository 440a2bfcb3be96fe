"""What extractions and runs take, estimated from the config alone; `assumptions` lists all that is assumed.

Work is counted in float32 operations and bytes, which a site's profile turns into time. An SAE type says itself what
its training step costs.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sae_outliers.activations.store import BLOCK_BATCHES
from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import wanted
from sae_outliers.sae.base import SAES, sae_type
from sae_outliers.sae.kernels import CHUNK_SIZE, MIN_ROWS
from sae_outliers.sweeps.task import Cost
from sae_outliers.training.revival import revival_type

# Cost relative to the encoder matmul, 2 × d_model × n_features operations per token, as a type's step_cost
INITIAL_COST = 1.2  # fates at initialisation
EVALUATION_COST = 1.5  # a point of the death curves: fates, codes and the reconstruction
DEFAULT_D_MODEL = 1024  # of a model whose config does not say it
CONTEXT_GB = 2.0  # of a GPU: CUDA and the library's buffers
HOST_GB = 6.0  # Python with its libraries and a shard or block of activations
# bytes in d_model²: a layer's scatter, float64, and what adding a chunk to it takes
COVARIANCE, COVARIANCE_UPDATE = 8, 32
LINEAR_CENTERINGS = ("whiten", "layernorm_center")
# bytes of a training step beside dense tensors: for each chosen entry (its value, index and place in the order of
# features), and for each token and dimension (inputs, residuals, AuxK's reconstruction)
ENTRY_BYTES, TOKEN_BYTES = 80, 100
DEFAULT_GPU_GB = 8.0  # beside the weights: activations of a forward pass


def assumptions() -> tuple[str, ...]:
    by_cost: dict[float, list[str]] = {}
    for name, kind in SAES.items():
        by_cost.setdefault(kind.step_cost, []).append(name)
    steps = ", ".join(f"{cost} ({', '.join(names)})" for cost, names in sorted(by_cost.items()))
    return (
        "operations: a network's pass 2 × weights a token (model.flops_per_token where that is not so); an SAE's step "
        f"{steps}, a point of the curves {EVALUATION_COST}, fates at initialisation {INITIAL_COST} times the encoder's "
        "product, 2 × d_model × n_features a token",
        "disk: evaluation tokens in float32 and training tokens in store_dtype, and of a trained SAE two weight "
        "matrices; special tokens and padding not counted",
        "read: all evaluation tokens three times and once at every point of the curves, training tokens once a step",
    )


def extraction_cost(cfg: RunConfig, layers: int) -> Cost:
    """Return the cost of one pass of the token stream through the network, with so many layers of it stored."""
    tokens = wanted(cfg)
    return network_cost(cfg, tokens.total) + Cost(disk=tokens.bytes_after(0) * tokens.total * width(cfg) * layers)


def network_cost(cfg: RunConfig, tokens: float) -> Cost:
    weights = 4 * (cfg.model.parameters or 0)
    a_token = cfg.model.flops_per_token or weights / 2
    # most libraries have the weights in memory twice while they load them
    return Cost(tokens * a_token, weights, gpu_gb=model_gpu_gb(cfg), host_gb=HOST_GB + 1.5 * weights / 1e9)


def model_gpu_gb(cfg: RunConfig) -> float:
    """Return the memory of the GPU that the network needs: the smallest that its yaml has a batch size for, or less."""
    small = DEFAULT_GPU_GB + 1.2 * 4e-9 * (cfg.model.parameters or 0)
    return min([*map(float, cfg.model.gpu_batch_size), small])


def run_cost(cfg: RunConfig) -> Cost:
    """Return the cost of one SAE on one stored layer, from its tokens to the record."""
    d_model, steps = width(cfg), cfg.train.steps
    product = 2 * d_model * cfg.sae.n_features
    points = steps / cfg.train.eval_every  # the first comes with the fates, the end's figures with the last
    step = sae_type(cfg.sae).step_cost
    trained = steps * cfg.train.batch_size
    operations = (
        product * (cfg.n_eval * (INITIAL_COST + EVALUATION_COST * points) + step * trained)
        + cfg.n_eval * 2 * d_model**2
    )
    return Cost(
        operations,
        read=4 * d_model * cfg.n_eval * (3 + points) + training_token_bytes(cfg) * trained,
        disk=weights_bytes(cfg) if steps else 0,
        gpu_gb=CONTEXT_GB + (held_bytes(cfg) + working_bytes(cfg)) / 1e9,
        host_gb=HOST_GB + (weights_bytes(cfg) + blocks_bytes(cfg)) / 1e9,
    )


def joint_cost(variants: Sequence[RunConfig]) -> Cost:
    """Return the cost of a stored layer under all variants, whose SAEs are in memory together and take turns."""
    one_by_one = sum(map(run_cost, variants), Cost())
    held, working = sum(map(held_bytes, variants)), max(map(working_bytes, variants))
    weights, blocks = sum(map(weights_bytes, variants)), max(map(blocks_bytes, variants))
    return replace(one_by_one, gpu_gb=CONTEXT_GB + (held + working) / 1e9, host_gb=HOST_GB + (weights + blocks) / 1e9)


def streamed_cost(cfg: RunConfig, layers: int, variants: Sequence[RunConfig]) -> Cost:
    """Return the cost of all layers under all variants from two passes of the network, without a store."""
    counted = sum(cfg.n_eval * layers * INITIAL_COST * 2 * width(cfg) * one.sae.n_features for one in variants)
    network, one = network_cost(cfg, 2 * cfg.n_eval), joint_cost(variants[:1])
    held = layers * (COVARIANCE + sum(map(mapped_matrices, variants))) * width(cfg) ** 2 / 1e9
    return Cost(
        network.operations + counted + layers * cfg.n_eval * 2 * width(cfg) ** 2,
        network.read,
        gpu_gb=network.gpu_gb + held + one.gpu_gb,
        host_gb=network.host_gb + held,
    )


def weights_bytes(cfg: RunConfig) -> float:
    """Return the bytes of both weight matrices."""
    return 8 * width(cfg) * cfg.sae.n_features


def held_bytes(cfg: RunConfig) -> float:
    """Return what a run holds on the device from its set-up to its end: weights, gradients, moments, its centering."""
    return 4 * weights_bytes(cfg) + mapped_matrices(cfg) * width(cfg) ** 2


def working_bytes(cfg: RunConfig) -> float:
    """Return what is on the device for a while: the covariance, then steps and points of the curves."""
    n, batch = cfg.sae.n_features, cfg.train.batch_size
    chunk = 4 * max(MIN_ROWS * n, CHUNK_SIZE["cuda"])
    dense = sae_type(cfg.sae).step_tensors + revival_type(cfg.revival).step_tensors
    step = max(4 * dense * batch * n, 1.5 * chunk) + batch * (ENTRY_BYTES * cfg.sae.k + TOKEN_BYTES * width(cfg))
    point = (1.5 + min(4, sae_type(cfg.sae).step_tensors)) * chunk
    return (COVARIANCE + COVARIANCE_UPDATE) * width(cfg) ** 2 + max(point, step if cfg.train.steps else 0)


def blocks_bytes(cfg: RunConfig) -> float:
    """Return the bytes of the training tokens in memory: a block, and one that is read ahead."""
    return 2 * BLOCK_BATCHES * cfg.train.batch_size * training_token_bytes(cfg) if cfg.train.steps else 0


def training_token_bytes(cfg: RunConfig) -> int:
    """Return the bytes of a stored training token."""
    return np.dtype(cfg.store_dtype).itemsize * width(cfg)


def mapped_matrices(cfg: RunConfig) -> int:
    """Return the bytes that a centering with a linear map holds, in d_model²: map, inverse, and the mapped scatter."""
    return 16 if cfg.centering.name in LINEAR_CENTERINGS else 0


def width(cfg: RunConfig) -> int:
    return cfg.model.d_model or DEFAULT_D_MODEL
