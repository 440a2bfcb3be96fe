"""A saved view of the runs in your W&B project: `python launch/wandb_view.py entity=<you or your team>`.

Death curves over tokens, severity against death at initialisation, and the distance of the bias from the mean; curves
are medians by centering, with the range of all runs. Needs wandb-workspaces, which `make install` brings, and a key for
W&B; a second call makes a second view.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

DEATHS = {
    "dead_pct_topk": "Dead by TopK (%)",
    "dead_pct_relu": "Dead by ReLU (%)",
    "dead_pct_window": "Not fired in the last dead_window tokens (%)",
}
BIAS = {"b_dec_distance": "‖b_dec - μ‖ / ‖μ‖", "b_dec_cos": "cos(b_dec, μ)"}
CENTERING = "centering.name"  # in the runs' config
AT_INIT = {
    "dead_pct_init_topk": "Dead by TopK at initialisation (%)",
    "dead_pct_init_relu": "Dead by ReLU at initialisation (%)",
}


@dataclass
class ViewConfig:
    entity: str = MISSING
    project: str = "sae_outliers"
    name: str = "Feature death"


def main(arguments: Sequence[str]) -> None:
    try:
        config: Any = OmegaConf.merge(OmegaConf.structured(ViewConfig), OmegaConf.from_cli(list(arguments)))
        view = workspace(config.entity, config.project, config.name)
    except OmegaConfBaseException as error:
        sys.exit(str(error).splitlines()[0])
    except ImportError as error:
        sys.exit(str(error))
    view.save()


def workspace(entity: str, project: str, name: str) -> Any:
    """Return the view, a `wandb_workspaces.workspaces.Workspace` that is not saved yet.

    Raises:
        ImportError: the package wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as views
    except ImportError as error:
        raise ImportError("the view needs a package of W&B's: pip install wandb-workspaces") from error

    def curve(metric: str, title: str) -> Any:
        return panels.LinePlot(
            title=title,
            x="tokens",
            y=[metric],
            groupby=panels.Config(CENTERING),
            groupby_aggfunc="median",
            groupby_rangefunc="minmax",
        )

    def against_gamma(metric: str, title: str) -> Any:
        return panels.ScatterPlot(title=title, x=panels.SummaryMetric("gamma"), y=panels.SummaryMetric(metric))

    sections = {
        "Death over training": [curve(*item) for item in DEATHS.items()],
        "γ against death at initialisation": [against_gamma(*item) for item in AT_INIT.items()],
        "The bias on its way to the mean": [curve(*item) for item in BIAS.items()],
    }
    return views.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[views.Section(name=title, panels=shown, is_open=True) for title, shown in sections.items()],
        settings=views.WorkspaceSettings(x_axis="tokens"),
    )
