"""Where the project's own files are: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent


def _bundled(name: str, in_checkout: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else CHECKOUT / in_checkout


CONF = _bundled("conf", "conf")
SITES = _bundled("slurm", "launch/slurm")


def config_folders() -> list[Path]:
    """Folders whose config groups count: the user's own, `conf/` in the working directory, and the project's."""
    own = Path.cwd() / "conf"
    return [CONF] if own.resolve() == CONF.resolve() or not own.is_dir() else [own, CONF]
