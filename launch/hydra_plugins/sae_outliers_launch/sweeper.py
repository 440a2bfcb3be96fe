"""Hydra's `-m` for this project: `hydra/sweeper=layers`."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LayerSweeper(Sweeper):
    """One job per model, layer and condition; activations are extracted first, once per model.

    `params` are sweeps that an experiment brings along; the command line comes first. Imports of the project stand in
    the methods, because Hydra imports every plugin before it knows whether one is used.
    """

    def __init__(self, params: dict[str, Any] | None) -> None:
        self.params = dict(params or {})  # Hydra hands over its own kind of mapping

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from sae_outliers.sweeps.scheduler import HydraSweep

        self.hydra_sweep = HydraSweep(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        from sae_outliers.sweeps.sweep import run_sweep

        run_sweep(self.hydra_sweep, arguments, self.params)
