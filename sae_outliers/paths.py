"""Where configs are: the project's, beside the package in a checkout or inside it in a wheel, and the user's own.

A name says whose an option is. The user's folder, `conf/` in the working directory, comes after the project's and may
not repeat its names; in a checkout the two are one folder, where the paper's models are told from the user's by name.
"""

from pathlib import Path

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent  # in a wheel site-packages; in the copy of the code that a sweep's jobs run, that copy
INSTALLED = (PACKAGE / "conf").is_dir()  # from a wheel, which has neither the Makefile nor launch/

CONF = PACKAGE / "conf" if INSTALLED else CHECKOUT / "conf"
CONF_OWN = CONF / "own"  # model=hf, timm and dump, which say nothing until they are given a name or a path
SITES = PACKAGE / "slurm" if INSTALLED else CHECKOUT / "launch" / "slurm"

COPIED_CONF = "user_conf"  # the user's folder as it was when a sweep was submitted, in the copy of the code

# arXiv 2605.31518: 19 models, 454 model-layers
PAPER_MODELS = (
    "gpt2",
    "pythia_70m",
    "pythia_410m",
    "modernbert",
    "modernbert_large",
    "glm2",
    "evo",
    "esm2_35m",
    "esm2_650m",
    "esm2_3B",
    "esm3",
    "progen_base",
    "progen_large",
    "af3",
    "dinov2",
    "dinov2_large",
    "dinov3_small",
    "dinov3",
    "stable-diffusion-3-5-large",
)


def user_conf() -> Path | None:
    """The user's own config folder, if there is one: `conf/` in the working directory.

    A job that runs a copy of the code sees the copy of that folder, whatever has become of the folder since.
    """
    is_copy = (CHECKOUT / "COMMIT").is_file()
    folder = CHECKOUT / COPIED_CONF if is_copy else Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != CONF.resolve() else None


def config_folders() -> list[Path]:
    """The folders whose config groups count, the first one first: the project's, then the user's own."""
    own = user_conf()
    return [CONF, CONF_OWN, *([own] if own else [])]


def check_user_conf(folder: Path) -> None:
    """Raises ValueError if a file there has the name of one of the project's options, which would hide it."""
    for path in sorted(folder.glob("*/**/*.yaml")):
        option = path.relative_to(folder)
        if any((project / option).is_file() for project in (CONF, CONF_OWN)):
            raise ValueError(
                f"{path} has the name of one of the project's own options, {option.parent}={option.stem}: rename it"
            )


def is_globbed(group: str, option: str) -> bool:
    """Whether `<group>=glob(*)` takes an option in: of models only the paper's, whatever else stands beside them."""
    return group != "model" or option in PAPER_MODELS
