"""What extractions and runs take, estimated from the config alone. Every assumption stands here, and in ASSUMPTIONS.

Work is counted in float32 operations and bytes, which a site's profile turns into time.
"""

from dataclasses import dataclass, fields

from sae_outliers.config import RunConfig
from sae_outliers.runs.activations import tokens_wanted

# Of a step on a batch, as multiples of the encoder's product, 2 × d_model × n_features operations a token: 1.29 and
# 6.28 measured on a CPU (results/benchmarks), more where rows of the decoder are gathered from a GPU's memory.
SPARSE_STEP, DENSE_STEP = 2.0, 6.3
SPARSE = ("topk", "batchtopk", "groupmax", "matryoshka")
COUNT = 1.2  # fates at initialisation, likewise a token
POINT = 1.5  # a point of the death curves: fates, codes and the reconstruction
WHERE_UNKNOWN = 1024  # d_model of a model whose config does not say it
CONTEXT_GB = 2.0  # of a GPU: CUDA and the library's buffers
HOST_GB = 6.0  # Python with its libraries and a shard or block of activations
DEFAULT_GPU_GB = 8.0  # beside the weights: activations of a forward pass

ASSUMPTIONS = (
    "operations: a network's pass 2 × weights a token (model.flops_per_token where that is not so); an SAE's step "
    f"{SPARSE_STEP} (ReLU, Gated, JumpReLU {DENSE_STEP}), a point of the curves {POINT}, fates at initialisation "
    f"{COUNT} times the encoder's product, 2 × d_model × n_features a token",
    "disk: float32 activations, and of a trained SAE two weight matrices; special tokens and padding not counted",
    "read: all evaluation tokens thrice and once at every point of the curves, training tokens once a step",
)


@dataclass(frozen=True)
class Cost:
    """What a task takes on any machine.

    Attributes:
        operations: in float32.
        read, disk: bytes read, and bytes left behind.
        gpu_gb, host_gb: memory of the GPU and of the machine.
    """

    operations: float = 0.0
    read: float = 0.0
    disk: float = 0.0
    gpu_gb: float = 0.0
    host_gb: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Of one after the other: work adds up, memory does not."""
        together = {"gpu_gb": max, "host_gb": max}
        values = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Cost(**{name: together.get(name, lambda a, b: a + b)(*pair) for name, pair in values.items()})


def extraction_cost(cfg: RunConfig, layers: int) -> Cost:
    """The token stream once through the network, and so many layers of it stored."""
    tokens = tokens_wanted(cfg)
    return network_cost(cfg, tokens) + Cost(disk=4 * tokens * width(cfg) * layers)


def network_cost(cfg: RunConfig, tokens: float) -> Cost:
    weights = 4 * (cfg.model.parameters or 0)
    a_token = cfg.model.flops_per_token or weights / 2
    # most libraries have the weights in memory twice while they load them
    return Cost(tokens * a_token, weights, gpu_gb=model_gpu_gb(cfg), host_gb=HOST_GB + 1.5 * weights / 1e9)


def model_gpu_gb(cfg: RunConfig) -> float:
    """Of the GPU that the network needs: the smallest for which its yaml has a batch size, or less if it is small."""
    small = DEFAULT_GPU_GB + 1.2 * 4e-9 * (cfg.model.parameters or 0)
    return min([*map(float, cfg.model.gpu_batch_size), small])


def run_cost(cfg: RunConfig) -> Cost:
    """One SAE on one stored layer, from its tokens to the record."""
    d_model, steps = width(cfg), cfg.train.steps
    product = 2 * d_model * cfg.sae.n_features
    points = steps / cfg.train.eval_every + 2 if steps else 0
    step = SPARSE_STEP if cfg.sae.name in SPARSE else DENSE_STEP
    trained = steps * cfg.train.batch_size
    operations = product * (cfg.n_eval * (COUNT + POINT * points) + step * trained) + cfg.n_eval * 2 * d_model**2
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
    """All layers under all variants from two passes of the network, without a store."""
    product = 2 * width(cfg) * cfg.sae.n_features
    counted = Cost(layers * variants * cfg.n_eval * COUNT * product + layers * cfg.n_eval * 2 * width(cfg) ** 2)
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
    return cfg.model.d_model or WHERE_UNKNOWN
