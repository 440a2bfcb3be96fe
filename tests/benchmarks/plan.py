"""What is measured: sizes, and how often."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Size:
    d_model: int = 768
    n_features: int = 8192
    k: int = 64
    batch: int = 4096  # tokens


@dataclass(frozen=True)
class Plan:
    """`make bench`: twenty minutes on two cores."""

    size: Size = field(default_factory=Size)
    rounds: int = 5
    selection_gammas: tuple[float, ...] = (0, 1, 10, 50)
    selection_steps: int = 100  # of training, between the two comparisons
    selection_batch: int = 1024  # tokens of such a step
    selection_tokens: int = 8192
    death_tokens: int = 100_000
    n_features: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)
    d_model: tuple[int, ...] = (256, 512, 768, 1024, 2048, 4096)
    batch: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    stack_size: Size = field(default_factory=lambda: Size(d_model=64, n_features=512, k=8, batch=256))
    stack_members: tuple[int, ...] = (1, 2, 5, 10, 20)  # the last also with AuxK
    stack_widths: tuple[int, ...] = (128, 256, 512)  # d_model of stacks of 4, with 8 features a dimension
    extraction_model: str = "offline/smollm2"
    extraction_batches: int = 2
    diagnosis_tokens: int = 20_000
    sweep_layer: str = "all"  # of each of the paper's models, for planning
    sweep_most_layers: int | None = None  # of each, for aggregation; null: all
    large_rounds: int = 3  # for growth and for death at initialisation
    large_at_least_s: float = 6  # as many rounds as that takes


# seconds: it shows that everything runs, and its timings mean nothing
QUICK = Plan(
    size=Size(d_model=32, n_features=256, k=8, batch=64),
    rounds=2,
    selection_gammas=(0, 50),
    selection_steps=3,
    selection_batch=32,
    selection_tokens=128,
    death_tokens=200,
    n_features=(256,),
    d_model=(32,),
    batch=(64,),
    stack_size=Size(d_model=16, n_features=64, k=4, batch=32),
    stack_members=(1, 2),
    stack_widths=(32,),
    extraction_model="synthetic/sparse",
    diagnosis_tokens=300,
    sweep_layer="middle",
    sweep_most_layers=1,
    large_rounds=1,
    large_at_least_s=0,
)
