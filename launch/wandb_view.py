"""python launch/wandb_view.py entity=<you or your team>: a saved view of the runs in your W&B project."""

import sys

from sae_outliers.tracking.wandb_workspace import main

main(sys.argv[1:])
