"""Write the page of a diagnosis."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sae_outliers.diagnosis.page import data
from sae_outliers.diagnosis.page.captions import counts_of, measured_on, measured_on_all, told_of
from sae_outliers.diagnosis.page.sections import EVIDENCE, Contents, sections
from sae_outliers.diagnosis.result import ModelDiagnosis
from sae_outliers.pages import Page, html_of
from sae_outliers.utils.files import atomic_write

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, result: ModelDiagnosis, command: Sequence[str] = (), warnings: Sequence[str] = ()) -> None:
    """Write the page of the layers that were diagnosed; `command` are the words that did it, if any did.

    Raises:
        ValueError: no layer was finished.
    """
    if not result.layers:
        raise ValueError(f"{result.model}: no layer was finished, so there is nothing to show")
    with atomic_write(path) as beside:
        beside.write_text(html_of(page_of(result, command, warnings)), encoding="utf-8")


def page_of(result: ModelDiagnosis, command: Sequence[str] = (), warnings: Sequence[str] = ()) -> Page:
    found = list(result)
    datasets = data.frames(found)
    contents = Contents(result, datasets, command)
    most = data.dimensions_each(len(found))
    return Page(
        f"Diagnosis of {result.model}",
        f"{counts_of(found)} {measured_on_all(result)}" if len(found) > 1 else measured_on(result, found[0]),
        sections(contents),
        datasets,
        [*warnings, *_notes(result)],
        TEMPLATES,
        "diagnosis.js",
        "diagnosis.css",
        {
            "shown": data.number_of(contents.worst),
            "titles": {name: title for name, title in EVIDENCE.items() if name in datasets},
            "told": {str(data.number_of(one)): told_of(result, one, most) for one in found},
            "ends": ends(datasets),
        },
    )


def ends(datasets: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, float]]]:
    """Return where the axes of the figures of a layer end, by figure and layer."""
    return {
        name: {str(layer): data.extent(kind, rows) for layer, rows in datasets[name].groupby("layer")}
        for name in EVIDENCE
        if name in datasets and (kind := name.partition("_")[0]) in data.AXES
    }


def _notes(result: ModelDiagnosis) -> list[str]:
    """Return what the figures do not settle, of the layer that is least sure of itself."""
    one = max(result, key=lambda diagnosis: diagnosis.conditions["off"].unseen.pct)
    where = "" if one.layer is None else f"Layer {one.layer}: "
    return [f"{where}{note}." for note in one.notes]
