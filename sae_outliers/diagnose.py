"""python -m sae_outliers.diagnose <model or files>: will an SAE lose features here, why, and what to do.

    python -m sae_outliers.diagnose gpt2                            # a hub id, a folder, or a model of conf/model/
    python -m sae_outliers.diagnose timm:convnext_atto.d2_in1k
    python -m sae_outliers.diagnose acts/*.npy                      # stored activations, of one layer or several
    python -m sae_outliers.diagnose offline/minilm layer=5 n_features=4096 k=32
    python -m sae_outliers.diagnose gpt2 layer=6 sae=<folder>       # an SAE that somebody trained, on that layer
    python -m sae_outliers.diagnose gpt2 to=centerings              # keep the centering of each layer, and the table

All layers in one pass. It leaves a page of figures, diagnosis.html, in this folder or in that of `to=`; `page=` names
another file, and page=none leaves none. Nothing else is stored but what `to=` asks for. Beside its own options it takes
those of `run` that say which tokens there are and where: data=, preprocessing=, special_tokens=, seed=, device=,
model.loader...=.

The module can be called: it is `sae_outliers.diagnose(activations)` too, of activations [tokens, d_model], whichever
way it was imported.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sae_outliers.diagnosis.api import diagnose
from sae_outliers.utils.boundary import one_sentence, shows_help
from sae_outliers.utils.memory import keep_freed_memory

if TYPE_CHECKING:
    from sae_outliers.config import RunConfig
    from sae_outliers.diagnosis.result import Diagnosis, ModelDiagnosis


NO_PAGE = "none"


class _Callable(ModuleType):
    """A module and, when it is called, the function of its name."""

    __call__ = staticmethod(diagnose)


sys.modules[__name__].__class__ = _Callable


@dataclass
class Request:
    """What the command line says.

    Attributes:
        targets: what is named without `=`.
        layer: all, middle, a number or a list of numbers.
        sae: folder of a trained SAE's files.
        to: a folder for what is recommended.
        page: a file for the page of figures, or none; None: diagnosis.html, in the folder `to` if there is one.
        others: overrides that go to the config of `run`.
    """

    targets: list[str] = field(default_factory=list)
    layer: str = "all"
    sae: str | None = None
    n_features: int | None = None
    k: int | None = None
    tokens: int | None = None
    to: str | None = None
    page: str | None = None
    others: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> None:
    if shows_help(arguments, (__doc__ or "").rpartition("\n\n")[0]):
        return
    from sae_outliers.diagnosis.result import ModelDiagnosis

    request = parse(arguments)
    cfg = composed(request)
    done: dict[int, Diagnosis] = {}
    status = 0
    try:
        for diagnosis in diagnosed(request, cfg):
            done[diagnosis.layer or 0] = diagnosis
            keep(diagnosis, request.to)
            print(f"layer {diagnosis.layer}: {diagnosis.verdict.kind}. {diagnosis.verdict.reason}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: what is finished is below", file=sys.stderr)
        status = 130
    result = ModelDiagnosis(cfg.model.name, done, cfg.data.name)
    if done:
        print()
        print(next(iter(result)) if len(done) == 1 else result)
        keep_table(result, request.to)
        if request.page != NO_PAGE:
            keep_page(result, request, arguments, interrupted=status != 0)
    sys.exit(status)


def parse(arguments: Sequence[str]) -> Request:
    """Raises ValueError for a number that is none, or an option that is given twice."""
    request, seen = Request(), set[str]()
    for argument in arguments:
        name, is_option, value = argument.partition("=")
        if not is_option or Path(argument).expanduser().exists():
            request.targets.append(argument)
            continue
        if name in seen:
            raise ValueError(f"{name}= is given twice")
        seen.add(name)
        match name:
            case "layer" | "sae" | "to" | "page":
                setattr(request, name, value)
            case "n_features" | "k" | "tokens":
                setattr(request, name, _number(name, value))
            case _:
                request.others.append(argument)
    return request


def _number(name: str, value: str) -> int:
    text = value.replace("_", "")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}={value} is not a whole number of at least 1")
    return int(text)


def composed(request: Request) -> "RunConfig":
    """Return the config by which `run` would measure the same without a store."""
    from hydra import compose, initialize_config_dir

    from sae_outliers.config import register
    from sae_outliers.diagnosis.target import overrides_of
    from sae_outliers.paths import CONF

    register()
    sizes = [] if request.tokens is None else [f"n_eval={request.tokens}"]
    fixed = [f"layer={request.layer}", "train=none", "tracker=none", "store=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: RunConfig = compose("config", [*overrides_of(request.targets), *fixed, *sizes, *request.others])  # type: ignore[assignment]
    return cfg


def diagnosed(request: Request, cfg: "RunConfig") -> "Iterator[Diagnosis]":
    """Yield the diagnosis of each layer that is asked for. Raises ValueError for what cannot be used."""
    from sae_outliers.diagnosis.api import loaded_sae
    from sae_outliers.diagnosis.model import diagnose_layers
    from sae_outliers.runs.layer_spec import layers_of
    from sae_outliers.runs.validation import validate

    validate(cfg, [])
    loaded = loaded_sae(request.sae)
    layers = layers_of(cfg.model, cfg.layer)
    if loaded is not None and len(layers) > 1:
        raise ValueError(f"sae={request.sae} is of one layer, but layer={cfg.layer} are {len(layers)}: name its layer")
    given = [one.partition("=")[2] for one in request.others if one.startswith("preprocessing=")]
    yield from diagnose_layers(cfg, layers, request.n_features, request.k, loaded, given[0] if given else None)


def keep(diagnosis: "Diagnosis", to: str | None) -> None:
    """Write the centering of a layer into the folder `to`."""
    if to is not None:
        diagnosis.recommended.centering.save(Path(to) / f"layer_{diagnosis.layer}.safetensors")


def keep_table(result: "ModelDiagnosis", to: str | None) -> None:
    from sae_outliers.utils.files import atomic_write

    if to is not None:
        with atomic_write(Path(to) / "layers.csv") as beside:
            result.table.to_csv(beside)


def keep_page(result: "ModelDiagnosis", request: Request, arguments: Sequence[str], interrupted: bool) -> None:
    """Write the page of figures where the request says, and print where that is."""
    from sae_outliers.diagnosis.page.write import write_page  # loads Altair, 1 s
    from sae_outliers.diagnosis.result import PAGE

    path = Path(request.to or "") / PAGE if request.page is None else Path(request.page).expanduser()
    warnings = ["Interrupted: these are the layers that were finished."] if interrupted else []
    write_page(path, result, ["python", "-m", "sae_outliers.diagnose", *arguments], warnings)
    print(f"\nfigures: {path}")


if __name__ == "__main__":
    keep_freed_memory()
    with one_sentence():
        main(sys.argv[1:])
