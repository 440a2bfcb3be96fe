"""The sections of the page, in the order of reading. One that the records have nothing for has no blocks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from sae_outliers.analysis.conditions import conditions_among
from sae_outliers.analysis.inputs import Inputs
from sae_outliers.analysis.report import charts, data
from sae_outliers.analysis.report.captions import measured_on
from sae_outliers.analysis.tables.spearman import SEVERITIES
from sae_outliers.analysis.write import Table
from sae_outliers.pages import Block, Chart, Fragment, Listing, Prose, Recipe, Section

FORMULAS = {  # title -> the column that predicts, and what is predicted
    "Closed form: dead by TopK": ("theory_pct_topk", "TopK"),
    "Small-γ threshold: dead by TopK": ("theory_pct_topk_small_gamma", "TopK"),
    "Closed form: dead by ReLU": ("theory_pct_relu", "ReLU"),
}
BIAS_TITLES = {
    "mean_in_bias": "Mean held by the bias (%)",
    "always_on": "Features always on",
    "dead_pct_relu": "Dead by ReLU (%)",
}
PUBLISHED = {
    "reference_spearman": "Spearman's ρ, published and own",
    "reference_models": "Models, published and own",
    "reference_theory": "Closed forms, published and own",
    "reference_recovery": "Trained SAEs, published and own",
}


@dataclass(frozen=True)
class Contents:
    """What the page is made of: the inputs, the tables made of them by name, the frames of `data`, what was published.

    Attributes:
        trained_on_disk: whether any run has its curves.
        recipes: title -> what to paste.
        left_out: tables and figures that no record has a column for.
    """

    inputs: Inputs
    tables: Mapping[str, Table]
    frames: Mapping[str, pd.DataFrame]
    published: pd.DataFrame | None
    trained_on_disk: bool
    recipes: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def listing(self, name: str, title: str, follows_filter: bool = False) -> list[Block]:
        if name not in self.tables:
            return []
        table = self.tables[name]
        share = ("layers", "expected") if {"layers", "expected"} <= set(table.frame) else None
        return [Listing(name, title, table.frame, table.note, share, follows_filter)]

    def frame(self, name: str) -> pd.DataFrame:
        return self.frames.get(name, pd.DataFrame())


def sections(contents: Contents) -> list[Section]:
    made = {
        ("coverage", "Coverage"): coverage(contents),
        ("gamma", "γ against death"): gamma(contents),
        ("depth", "γ by depth"): depth(contents),
        ("models", "Models"): contents.listing("models", "Severity and death by model", follows_filter=True),
        ("curves", "Death curves"): curves(contents),
        ("recovery", "Recovery"): recovery(contents),
        ("theory", "Closed forms"): closed_forms(contents),
        ("published", "Published table"): published(contents),
        ("again", "How this was made"): again(contents),
    }
    return [Section(name, heading, list(blocks)) for (name, heading), blocks in made.items()]


def coverage(contents: Contents) -> Iterator[Block]:
    yield from contents.listing("coverage", "Layers measured of those expected")
    rows = contents.frame("layers")
    if len(rows):
        yield Fragment("filter.html.jinja", {"models": rows["model"].nunique()})


def gamma(contents: Contents) -> Iterator[Block]:
    rows = contents.frame("layers")
    if rows.empty:
        return
    if "spearman" in contents.tables:
        yield Prose(correlations(contents.tables["spearman"].frame))
    yield from against_death("layers", "closed_forms", rows, "", "the layer's card")
    yield Fragment("card.html.jinja")


def against_death(points: str, forms: str, rows: pd.DataFrame, prefix: str, opens: str) -> Iterator[Block]:
    reading = charts.said_of(rows, ("gamma",), opens)
    for death in ("TopK", "ReLU"):
        column = f"dead_pct_init_{death.lower()}"
        if column in rows:
            worst = rows.iloc[rows[column].argmax()]
            yield Chart(
                f"{prefix}gamma_vs_{death.lower()}",
                f"{'Published: ' if prefix else ''}γ against dead by {death}",
                f"Scatter plot of {len(rows)} layers: γ from {rows['gamma'].min():.2f} to {rows['gamma'].max():.2f}, "
                f"features dead by {death} up to {worst[column]:.1f} % (layer {worst['layer']} of {worst['model']}).",
                f"A point per layer, centering=off, under the closed forms at these sizes. {measured_on(rows)}",
                charts.gamma_against_death(points, forms, rows, death, reading),
                points,
                reading,
                follows_filter=not prefix,
            )


def correlations(frame: pd.DataFrame) -> str:
    """Return Spearman's ρ of post-LN γ with death by TopK over all layers, with what it is worth."""
    row = frame[(frame["domain"] == "all") & (frame["severity"] == SEVERITIES["gamma"]) & (frame["death"] == "TopK")]
    if row.empty or row["ρ"].isna().all():
        return "There are too few layers, or too much alike, for a rank correlation."
    found = row.iloc[0]
    intervals = [
        f"{found[f'ρ over {unit} low']:.2f} to {found[f'ρ over {unit} high']:.2f} over {unit}"
        for unit in ("layers", "models")
        if not pd.isna(found[f"ρ over {unit} low"])
    ]
    bootstrap = f" (bootstrap 95 %: {', '.join(intervals)})" if intervals else ""
    return (
        f"Spearman's ρ of γ with dead by TopK is {found['ρ']:.2f} over {found['layers']} layers of {found['models']} "
        f"model{'' if found['models'] == 1 else 's'}{bootstrap}."
    )


def depth(contents: Contents) -> Iterator[Block]:
    rows = contents.frame("depths")
    if rows.empty:
        return
    reading = charts.said_of(rows, ("model", "depth"))
    highest = rows.iloc[rows["gamma"].argmax()]
    yield Chart(
        "gamma_by_depth",
        "γ by relative depth",
        f"Lines of γ from the first layer to the last for {rows['model'].nunique()} models; the highest is "
        f"{highest['gamma']:.2f} in layer {highest['layer']} of {highest['model']}.",
        f"A line per model. γ is of post-LN activations, before centering. {measured_on(contents.inputs.natural)}",
        charts.gamma_by_depth("depths", "depth_labels" if "depth_labels" in contents.frames else None, rows, reading),
        "depths",
        reading,
        follows_filter=True,
    )


def curves(contents: Contents) -> Iterator[Block]:
    runs = contents.frame("runs")
    if not contents.trained_on_disk:
        return
    yield Fragment("curves.html.jinja")
    yield Chart(
        "death_curves",
        "Death over training",
        "Lines of the percentage of dead features over training tokens, one per run.",
        measured_on(contents.inputs.trained.runs, trained=True),
        charts.death_curves(conditions_among(runs["condition"])),
        "curve",
        on_demand=True,
    )


def recovery(contents: Contents) -> Iterator[Block]:
    trained = contents.inputs.trained.runs
    natural = trained[trained["planted_gamma"].isna()] if len(trained) else trained
    bars = contents.frame("recovery")
    if len(bars):
        yield Chart(
            "recovery_by_condition",
            "Dead before and after training, by condition",
            f"Bars of dead by TopK at initialisation and after training for {bars['model'].nunique()} models under "
            f"{bars['condition'].nunique()} conditions.",
            "Solid: after training. Outlined: at initialisation. Medians over the layers and runs of a model. "
            + measured_on(natural, trained=True),
            charts.recovery_bars(bars),
            "recovery",
        )
    yield from contents.listing("recovery", "Recovery by layer")
    yield from planted(contents, trained)
    yield from bias(contents, trained)


def planted(contents: Contents, trained: pd.DataFrame) -> Iterator[Block]:
    for name, rows in contents.frames.items():
        if name.startswith("planted_"):
            model, layer, death = rows.iloc[0][["model", "layer", "death"]]
            of = trained[(trained["model"] == model) & (trained["layer"] == layer) & trained["planted_gamma"].notna()]
            yield Chart(
                name,
                f"{model}, layer {layer}: dead by {death} after training",
                f"Lines of dead by {death} over planted γ, for {rows['condition'].nunique()} conditions.",
                "The mean was rescaled so that γ is as planted. Dotted: at initialisation, without centering. "
                f"{measured_on(of, trained=True)}",
                charts.planted(name, rows),
                name,
            )
    yield from contents.listing("planted", "Recovery by planted γ")


def bias(contents: Contents, trained: pd.DataFrame) -> Iterator[Block]:
    rows = contents.frame("bias")
    if rows.empty:
        return
    of = trained[trained["planted_gamma"].notna() & trained["condition"].isin(data.OF_BIAS)]
    for column, title in BIAS_TITLES.items():
        if column in rows:
            yield Chart(
                f"bias_{column}",
                title,
                f"Lines of {title} over training tokens at {rows['planted_gamma'].nunique()} planted γ.",
                "How the bias takes the mean over: TopK SAEs without centering, b_dec learning or frozen. "
                f"{measured_on(of, trained=True)}",
                charts.bias_over_steps("bias", rows, column, title),
                "bias",
            )


def closed_forms(contents: Contents) -> Iterator[Block]:
    rows = contents.frame("layers")
    for title, (predicted, death) in FORMULAS.items():
        measured = f"dead_pct_init_{death.lower()}"
        if {predicted, measured} <= set(rows):
            error = (rows[predicted] - rows[measured]).abs()
            says = {**charts.WHO, predicted: ("closed form (%)", 1), measured: ("measured (%)", 1)}
            reading = charts.Reading((predicted,), says, "the layer's card")
            yield Chart(
                f"{predicted.replace('_pct', '')}_vs_measured",
                title,
                f"Scatter plot of {len(rows)} layers: the closed form is off by {error.mean():.1f} percentage points "
                f"on average and by {error.max():.1f} at most.",
                f"On the line, the closed form and the measurement agree. {measured_on(rows)}",
                charts.closed_form_beside_measured("layers", rows, predicted, death, reading),
                "layers",
                reading,
                follows_filter=True,
            )
    yield from contents.listing("theory", "Closed form minus measured")
    yield from contents.listing("spearman", "Spearman's ρ of severity with death")


def published(contents: Contents) -> Iterator[Block]:
    rows = contents.frame("published")
    if len(rows):
        yield from against_death("published", "published_forms", rows, "published_", "")
    for name, title in PUBLISHED.items():
        yield from contents.listing(name, title, follows_filter=name == "reference_models")


def again(contents: Contents) -> Iterator[Block]:
    for title, code in contents.recipes.items():
        yield Recipe(title, code)
    if contents.left_out:
        yield Prose(f"Left out: {'; '.join(contents.left_out)}.")
