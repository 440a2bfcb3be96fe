"""What extractions and runs take, estimated from the config alone; `assumptions` lists all that is assumed.

Work is counted in float32 operations and bytes, which a site's profile turns into time. An SAE type says itself what
its training step costs.
"""

from sae_outliers.activations.extract import tokens_wanted
from sae_outliers.config import RunConfig
from sae_outliers.sweeps.sae_shim import SAES
from sae_outliers.sweeps.task import Cost

# Cost relative to the encoder matmul, 2 × d_model × n_features operations per token, as a type's step_cost
INITIAL_COST = 1.2  # fates at initialisation
EVALUATION_COST = 1.5  # a point of the death curves: fates, codes and the reconstruction
DEFAULT_D_MODEL = 1024  # of a model whose config does not say it
CONTEXT_GB = 2.0  # of a GPU: CUDA and the library's buffers
HOST_GB = 6.0  # Python with its libraries and a shard or block of activations
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
        "disk: float32 activations, and of a trained SAE two weight matrices; special tokens and padding not counted",
        "read: all evaluation tokens three times and once at every point of the curves, training tokens once a step",
    )


def extraction_cost(cfg: RunConfig, layers: int) -> Cost:
    """Return the cost of one pass of the token stream through the network, with so many layers of it stored."""
    tokens = tokens_wanted(cfg)
    return network_cost(cfg, tokens) + Cost(disk=4 * tokens * width(cfg) * layers)


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
    points = steps / cfg.train.eval_every + 2 if steps else 0
    step = SAES[cfg.sae.name].step_cost
    trained = steps * cfg.train.batch_size
    operations = (
        product * (cfg.n_eval * (INITIAL_COST + EVALUATION_COST * points) + step * trained)
        + cfg.n_eval * 2 * d_model**2
    )
    weights = 8 * d_model * cfg.sae.n_features
    chunk = 4 * 4096 * cfg.sae.n_features
    return Cost(
        operations,
        read=4 * d_model * (cfg.n_eval * (3 + points) + trained),
        disk=weights if steps else 0,
        gpu_gb=CONTEXT_GB + (4 * weights + 4 * chunk + 32 * d_model**2) / 1e9,
        host_gb=HOST_GB + (weights + 64 * cfg.train.batch_size * 4 * d_model) / 1e9,
    )


def streamed_cost(cfg: RunConfig, layers: int, variants: int) -> Cost:
    """Return the cost of all layers under all variants from two passes of the network, without a store."""
    product = 2 * width(cfg) * cfg.sae.n_features
    counted = Cost(layers * variants * cfg.n_eval * INITIAL_COST * product + layers * cfg.n_eval * 2 * width(cfg) ** 2)
    held = Cost(host_gb=layers * 16e-9 * width(cfg) ** 2, gpu_gb=layers * 16e-9 * width(cfg) ** 2)
    network = network_cost(cfg, 2 * cfg.n_eval)
    one = run_cost(cfg)
    return Cost(
        network.operations + counted.operations,
        network.read,
        gpu_gb=network.gpu_gb + held.gpu_gb + one.gpu_gb,
        host_gb=network.host_gb + held.host_gb,
    )


def width(cfg: RunConfig) -> int:
    return cfg.model.d_model or DEFAULT_D_MODEL
