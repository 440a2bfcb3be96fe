"""python -m tests.architectures: of which architectures the blocks are found, built on the meta device.

It prints what is refused, and why, as the lists in docs/models.md give it.
"""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from sae_outliers.models import contract
from sae_outliers.models.backbone import Backbone, Batch
from sae_outliers.models.blocks import block_list, blocks_path, part_that_runs
from sae_outliers.models.vision import timm as timm_vision

SECONDS = 60  # for one model

Outcome = tuple[str, str]  # found, refused or not built; where, or why


def transformers_outcomes() -> Iterator[tuple[str, Outcome]]:
    """Yield by model type whether the blocks of transformers' default model are found."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    transformers.logging.set_verbosity_error()
    for name, config in transformers.CONFIG_MAPPING.items():
        if config in list(MODEL_MAPPING.keys()):
            yield name, outcome(partial(_build, MODEL_MAPPING, config), _transformers_blocks)


def timm_outcomes() -> Iterator[tuple[str, Outcome]]:
    """Yield by model, the first and the last of each module of timm, whether its blocks keep the contract."""
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        for name in dict.fromkeys(names[:1] + names[-1:]):
            yield f"{module}: {name}", outcome(partial(timm.create_model, name), _timm_blocks)


def outcome(build: Callable[[], Any], find: Callable[[Any], str]) -> Outcome:
    with warnings.catch_warnings(), limited(SECONDS), torch.device("meta"):
        warnings.simplefilter("ignore")
        try:
            module = build()
        except Exception as error:  # whatever a model without its optional packages or sizes raises
            return "not built", f"{type(error).__name__}: {error}"
        try:
            return "found", find(module.eval())
        except ValueError as error:
            return "refused", str(error)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _build(models: Any, config: Any) -> Any:
    found = models[config]
    model = found[0] if isinstance(found, tuple | list) else found
    return model(config())


def _transformers_blocks(module: Any) -> str:
    path = blocks_path(module)
    part_that_runs(module, path)
    assert block_list(module, path)
    return path


def _timm_blocks(module: Any) -> str:
    size = module.pretrained_cfg["input_size"]
    grids = partial(
        timm_vision.hidden, layout=getattr(module, "output_fmt", "NCHW"), widths=timm_vision.stage_widths(module)
    )
    special = timm_vision.special_positions(module)
    batch = Batch({"x": torch.zeros(2, *size)}, special=None if special is None else special.expand(2, -1))
    blocks = timm_vision.find_blocks(module)
    return contract.agreed_shapes(Backbone(module, blocks, lambda _: [], lambda _: batch, grids), batch)


def main() -> None:
    for library, outcomes in (("transformers", transformers_outcomes()), ("timm", timm_outcomes())):
        rows = dict(outcomes)
        print(
            library, {kind: sum(row[0] == kind for row in rows.values()) for kind in ("found", "refused", "not built")}
        )
        for name, (kind, why) in rows.items():
            if kind != "found":
                print(f"  {name} ({kind}): {' '.join(why.split())[:200]}")


if __name__ == "__main__":
    main()
