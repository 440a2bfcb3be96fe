"""To be deleted: `SAES` of sae/base.py, whose types carry `step_cost`."""

from types import SimpleNamespace

SAES = {name: SimpleNamespace(step_cost=2.0) for name in ("topk", "batchtopk", "groupmax", "matryoshka")} | {
    name: SimpleNamespace(step_cost=6.3) for name in ("relu", "relu_april", "gated", "jumprelu")
}
