"""The sections of the page, in the order of reading."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sae_outliers.diagnosis.page import charts, data
from sae_outliers.diagnosis.page.captions import measured_on, measured_on_all
from sae_outliers.diagnosis.recipes import SHIFTS
from sae_outliers.diagnosis.result import Diagnosis, ModelDiagnosis
from sae_outliers.diagnosis.trained import Action
from sae_outliers.diagnosis.verdict import FINE_RELU_PCT, FINE_TOPK_PCT
from sae_outliers.pages import Block, Chart, Fragment, Listing, Prose, Recipe, Section

# names for reading; the others are their own
LIBRARIES = {"saelens": "SAELens", "saelens_trainer": "SAELens' SAETrainer", "torch": "A plain torch loop"}
KEPT_IN_PYTHON = "d.recommended.centering.save('centering.safetensors')  # d: what sae_outliers.diagnose returned"
TERMS = (
    "γ = ‖μ‖ / ‖σ‖ says how far the tokens' mean is from 0, in units of their spread. A feature is dead by ReLU if it "
    "is positive on no token, and dead by TopK if it is never among a token's k largest positive ones, which includes "
    "dead by ReLU. It is always on if it is selected on more than 90 % of the tokens. A layer is fine up to "
    f"{FINE_TOPK_PCT:g} % dead by TopK and {FINE_RELU_PCT:g} % by ReLU, for training brings these back."
)
# name -> title and chart of a layer's figures
EVIDENCE = {
    "centerings": "Dead features by centering",
    "dimensions": "Mean against spread",
    "fates_off": "Fates of features, as it is",
    "fates_after": "Fates of features, centred",
    "spectrum": "Spectrum of the covariance",
    "bias": "Steps for b_dec alone",
}


@dataclass(frozen=True)
class Contents:
    """What the page is made of: the diagnosis, its frames, and the command that made it, if one did."""

    result: ModelDiagnosis
    frames: Mapping[str, pd.DataFrame]
    command: Sequence[str]

    @property
    def layers(self) -> list[Diagnosis]:
        return list(self.result)

    @property
    def worst(self) -> Diagnosis:
        return max(self.result, key=lambda one: one.conditions["off"].dead_pct_topk)


def sections(contents: Contents) -> list[Section]:
    made = {
        ("verdict", "Verdict"): verdicts(contents),
        ("layers", "Layers"): layers(contents),
        ("evidence", "Evidence"): evidence(contents),
        ("trained", "The trained SAE"): trained(contents),
        ("do", "What to do"): to_do(contents),
        ("table", "Table"): table(contents),
        ("again", "How this was made"): again(contents),
    }
    return [Section(name, heading, list(blocks)) for (name, heading), blocks in made.items()]


def verdicts(contents: Contents) -> Iterator[Block]:
    rows = [(data.number_of(one), name_of(one), one.verdict) for one in contents.layers]
    yield Fragment("verdicts.html.jinja", {"rows": rows})
    for one in contents.layers:
        if one.trained is not None:
            advice = one.trained.advice
            yield Prose(f"The trained SAE ({one.trained.source}): {advice.action.upper()}. {advice.reason}.")
    yield Prose(TERMS)


def name_of(one: Diagnosis) -> str:
    return "These tokens" if one.layer is None else f"Layer {one.layer}"


def layers(contents: Contents) -> Iterator[Block]:
    if len(contents.layers) == 1:
        return
    gammas, dead = contents.frames["gammas"], contents.frames["centerings"]
    highest, worst = gammas.iloc[gammas["gamma"].argmax()], contents.worst
    on = measured_on_all(contents.result)
    yield Chart(
        "gamma_by_layer",
        "γ by layer",
        f"Lines of γ over {len(contents.layers)} layers; the highest is {highest['gamma']:.2f} in layer "
        f"{highest['layer']}.",
        f"γ of the activations as the SAE is given them (solid) and as they could be, coloured by the verdict. {on}",
        charts.gamma_by_layer(gammas),
        "gammas",
        charts.READINGS["gamma_by_layer"],
    )
    yield Chart(
        "death_by_layer",
        "Dead features by layer",
        f"Lines of dead features over {len(contents.layers)} layers under four centerings; as it is, the most are "
        f"{worst.conditions['off'].dead_pct_topk:.1f} % in layer {worst.layer}.",
        f"Solid: dead by TopK. Dotted: dead by ReLU. {on}",
        charts.death_by_layer(dead),
        "centerings",
        charts.READINGS["death_by_layer"],
    )


def table(contents: Contents) -> Iterator[Block]:
    if len(contents.layers) > 1:
        note = f"Dead by TopK, by centering, and by ReLU in %. {measured_on_all(contents.result)}"
        yield Listing("layers", "Every layer", contents.result.table.reset_index(), note)


def evidence(contents: Contents) -> Iterator[Block]:
    shown = data.number_of(contents.worst)
    panels = [panel(one) for one in contents.layers]
    yield Fragment("evidence.html.jinja", {"panels": panels, "shown": shown})
    plots = {
        "centerings": charts.centerings(),
        "dimensions": charts.dimensions(),
        "spectrum": charts.spectrum(),
        "fates_off": charts.fates("fates_off"),
        "fates_after": charts.fates("fates_after"),
        "bias": charts.bias(),
    }
    for name, title in EVIDENCE.items():
        reading = charts.READINGS[name.partition("_")[0]]
        if name in contents.frames:
            yield Chart(name, title, "", "", plots[name], name, reading, on_demand=True)


def panel(one: Diagnosis) -> dict[str, object]:
    """Return what is said of a layer in words and numbers."""
    s = one.severity
    outliers = ", ".join(f"{int(one['dimension'])} ({one['ratio']:.1f})" for one in s.outlier_dims.to_dict("records"))
    facts = [
        *((f"γ, {name}", f"{gamma:.2f}", False) for name, gamma in data.gammas_of(one).items()),
        ("effective rank", f"{s.effective_rank:.1f} of {one.d_model:,}", False),
    ]
    if not data.bias(one).empty:
        facts.append(("steps for b_dec alone (estimate)", one.bias_steps_told, False))
    facts.append(("dimensions that stand out most (|μ|/σ)", outliers, True))
    rows = [
        (data.NAMES[name], [f"{c.gamma:.2f}", f"{c.dead_pct_topk:.1f}", f"{c.dead_pct_relu:.1f}", f"{c.always_on:,}"])
        for name, c in one.conditions.items()
    ]
    return {
        "layer": data.number_of(one),
        "name": name_of(one),
        "verdict": one.verdict,
        "option": f"{one.layer}: {one.verdict.kind}, {one.conditions['off'].dead_pct_topk:.1f} % dead by TopK",
        "facts": facts,
        "rows": rows,
        "notes": one.notes,
    }


def trained(contents: Contents) -> Iterator[Block]:
    for one in contents.layers:
        if one.trained is None:
            continue
        t = one.trained
        facts = {
            "alive": f"{100 - t.dead_pct:.1f} %",
            "positive, never selected": f"{t.never_selected_pct:.1f} %",
            "never positive": f"{t.never_positive_pct:.1f} %",
            "always on": f"{t.always_on:,}",
            "always on, of the active ones": f"{t.always_on_l0_pct:.1f} %",
            "mean held by b_dec": f"{100 * t.bias.mean_in_bias:.1f} %",
            "mean held by features": f"{100 * t.bias.mean_in_features:.1f} %",
            "of these, always on": f"{100 * t.mean_in_always_on:.1f} %",
            "γ after b_dec": f"{t.gamma:.2f}",
            "FVU": f"{t.fvu:.3f}",
            "L0": f"{t.l0:.1f}",
        }
        yield Fragment("trained.html.jinja", {"facts": facts})
        alive = len(t.features) - int((t.features["fate"] != 0).sum())
        yield Chart(
            "fates_trained",
            "Fates in the trained SAE",
            f"Histogram of the alignment of {len(t.features):,} features with μ by fate: {alive:,} are alive.",
            f"The {len(t.features):,} features of the SAE that was given, by the cosine of their encoder direction "
            f"with μ; fates by its own selection. {measured_on(contents.result, one, sae=False)}",
            charts.fates("fates_trained", data.extent("fates", data.trained_fates(one))),
            "fates_trained",
            charts.READINGS["fates"],
        )


def to_do(contents: Contents) -> Iterator[Block]:
    by_centering: dict[str, list[Diagnosis]] = {}
    for one in contents.layers:
        by_centering.setdefault(one.verdict.centering, []).append(one)
    for name, found in by_centering.items():
        yield Prose(instruction(name, found))
        if name != "off":
            for library in SHIFTS:
                yield Recipe(LIBRARIES.get(library, library), found[0].recommended.recipe(library))
    if set(by_centering) != {"off"}:
        keep = keeping(contents.command) if contents.command else KEPT_IN_PYTHON
        yield Recipe("Keep what these load", keep)
    for one in contents.layers:
        foldable = one.recommended.centering.linear is None
        if one.trained is not None and one.trained.advice.action == Action.FOLD and foldable:
            code = "sae = d.recentred()  # one of sae_outliers, to fine-tune; d: what sae_outliers.diagnose returned"
            yield Recipe("The trained SAE, its dead features reading centred tokens", code)


def instruction(centering: str, found: Sequence[Diagnosis]) -> str:
    where = "" if found[0].layer is None else f"{layers_in_words([data.number_of(one) for one in found])}: "
    words = {
        "off": "train as you would, on the activations as they are.",
        "mean": "subtract the mean, or start b_dec at it.",
        "geometric_median": "subtract the geometric median, or start b_dec at it.",
        "whiten": "whiten: subtract the mean, and divide each principal axis by its standard deviation.",
    }[centering]
    return where + words if where else words.capitalize()


def layers_in_words(numbers: Sequence[int]) -> str:
    """Return for example `Layers 1, 3 to 9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"Layer{'' if len(numbers) == 1 else 's'} {told}"


def keeping(command: Sequence[str]) -> str:
    kept = command if any(word.startswith("to=") for word in command) else [*command, "to=centerings"]
    return f"{shlex.join(kept)}  # writes layer_<n>.safetensors"


def again(contents: Contents) -> Iterator[Block]:
    if contents.command:
        yield Recipe("Make this page again", shlex.join(contents.command))
