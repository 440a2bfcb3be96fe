"""sae-outliers <command>: each command of the package, as `python -m sae_outliers.<command>` runs it."""

import runpy
import sys

# the module of each, and what it does
COMMANDS = {
    "diagnose": ("sae_outliers.diagnose", "say whether an SAE would lose features here, why, and what to do"),
    "run": ("sae_outliers.run", "measure a layer and train SAEs on it; with -m, a sweep over models and conditions"),
    "aggregate": ("sae_outliers.aggregate", "make tables and figures of the records in a results folder"),
    "status": ("sae_outliers.status", "list what is done, running, queued, failed and missing; retry=true repeats it"),
    "export": ("sae_outliers.export", "write a trained SAE in the format of another library"),
    "models": ("sae_outliers.models", "list the models that there are configs of, and how to install what they need"),
    "wandb-sync": ("sae_outliers.wandb_sync", "upload the runs that went to W&B offline"),
}


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"sae-outliers {command} is no command: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module, _ = COMMANDS[command]
    sys.argv[1:] = arguments  # Hydra reads them there
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["sae-outliers <command> [<option>=<value> ...]", "", *lines])


if __name__ == "__main__":
    main()
