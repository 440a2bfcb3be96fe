"""Weights & Biases as a mirror of the curves: online with a key, offline without one."""

import netrc
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_outliers.config import RunConfig
from sae_outliers.results.curves import Point
from sae_outliers.tracking.base import TRACKERS, Tracker


@TRACKERS.register("wandb")
class WandbTracker(Tracker):
    """A W&B run under our own run id, so that a resumed run continues the same W&B run."""

    libraries = ("wandb", "wandb.sdk.launch")  # the second, by `init`: longer than all else that a start takes

    def __init__(self, cfg: RunConfig, layer: int, run_id: str) -> None:
        import wandb  # imported lazily: takes a second, and `tracker=none` does without it

        directory = Path(cfg.results_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=cfg.tracker.project,
            entity=cfg.tracker.entity,
            id=run_id,
            name=f"{cfg.model.name}-{layer}-{cfg.sae.name}-{cfg.revival.name}-{cfg.centering.name}",
            resume="allow",
            reinit="create_new",  # variants are trained jointly in one process
            group=cfg.group,
            tags=[
                cfg.model.name[:64],  # W&B accepts no longer tag
                cfg.model.domain,
                cfg.sae.name,
                f"revival-{cfg.revival.name}",
                f"centering-{cfg.centering.name}",
            ],
            config=OmegaConf.to_container(cfg, resolve=True) | {"layer": layer},  # type: ignore[operator, arg-type]
            dir=str(directory),
            mode=wandb_mode(),  # type: ignore[arg-type]
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        # every curve is drawn over tokens: steps of runs with other batch sizes would not compare
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, point: Point) -> None:
        """Log under the training's own step, from which a resumed run continues; W&B drops what it has already."""
        self._run.log({name: value for name, value in point.items() if value is not None}, step=int(point["step"] or 0))

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        self._run.summary.update(summary)
        self._run.finish(exit_code=exit_code)


def wandb_mode() -> str:
    """Return `WANDB_MODE` if it is set; else online where there is a key for W&B, offline where there is none."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").removeprefix("https://").rstrip("/")
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
