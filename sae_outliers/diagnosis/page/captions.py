"""On what a figure was measured, and what it shows, in words."""

from collections.abc import Sequence

from sae_outliers.diagnosis.page import data
from sae_outliers.diagnosis.result import Diagnosis, ModelDiagnosis
from sae_outliers.stats.theory import BIAS_HALF_TIME_LR


def measured_on(result: ModelDiagnosis, one: Diagnosis, sae: bool = True) -> str:
    """Return for example `Measured on 20,000 tokens of smollm2, layer 5 (data: text), post-LN activations, ...`.

    `sae` adds the SAE at initialisation: its size and seed.
    """
    layer = "" if one.layer is None else f", layer {one.layer}"
    size = f"; SAE at initialisation: {size_of(one)}, seed {one.seed}" if sae else ""
    return f"Measured on {one.n_tokens:,} tokens of {result.model}{layer}{_of_data(result)}, {tokens_as(one)}{size}."


def measured_on_all(result: ModelDiagnosis) -> str:
    """Return the same of all layers together."""
    found = list(result)
    fewest, most = min(one.n_tokens for one in found), max(one.n_tokens for one in found)
    tokens = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    one = found[0]
    return (
        f"Measured on {tokens} tokens a layer of {len(found)} layers of {result.model}{_of_data(result)}, "
        f"{tokens_as(one)}; SAE at initialisation: {size_of(one)}, seed {one.seed}."
    )


def _of_data(result: ModelDiagnosis) -> str:
    return f" (data: {result.data})" if result.data else ""


def tokens_as(one: Diagnosis) -> str:
    return f"{data.PREPROCESSINGS.get(one.preprocessing, one.preprocessing)} activations"


def size_of(one: Diagnosis) -> str:
    return f"{one.n_features:,} features, k = {one.k}"


def counts_of(found: Sequence[Diagnosis]) -> str:
    """Return for example `1 layer is fine, 29 are to be centred`."""
    words = {"fine": "fine", "centre": "to be centred", "whiten": "to be whitened"}
    counts = {kind: sum(one.verdict.kind == kind for one in found) for kind in words}
    told = [f"{n} {'is' if n == 1 else 'are'} {words[kind]}" for kind, n in counts.items() if n]
    return f"Of {len(found)} layers, {', '.join(told)}."


# --- of a layer's figures: name -> (what it shows, for those who cannot see it; the caption) ------------------


def told_of(result: ModelDiagnosis, one: Diagnosis, most_dimensions: int) -> dict[str, tuple[str, str]]:
    """Return the description and caption of each figure that this layer has."""
    on_tokens, with_sae = measured_on(result, one, sae=False), measured_on(result, one)
    told = {
        "centerings": (_centerings(one), f"{CENTERINGS} {with_sae}"),
        "dimensions": (_dimensions(one), f"{_dimensions_drawn(one, most_dimensions)} {on_tokens}"),
        "spectrum": (_spectrum(one), f"{_spectrum_drawn(one)} {on_tokens}"),
        "fates_off": (_fates(one, "off"), f"{FATES} {with_sae}"),
        "fates_after": (_fates(one, data.after(one)), f"{_fates_after(one)} {with_sae}"),
    }
    if not data.bias(one).empty:
        told["bias"] = (_bias(one), f"{BIAS} {on_tokens}")
    return told


CENTERINGS = (
    "Of all features, in percent: never positive on any token (dead by ReLU), and positive but never among a token's k "
    "largest; the two together are dead by TopK."
)
FATES = (
    "Features by the cosine of their encoder direction with μ. Where γ is large, those that point away from the mean "
    "are dead, and those that point along it always on."
)
BIAS = (
    "An estimate, not a measurement: after how many steps of Adam b_dec, left to learn the mean by itself, would hold "
    "half of it, by a law that was fitted to small SAEs (128 to 2,048 features, width 64) at learning rates of "
    f"{BIAS_HALF_TIME_LR[0]:g} to {BIAS_HALF_TIME_LR[1]:g} (solid; dashed: beyond). Elsewhere it tells the order of "
    "magnitude. The large point is SAELens' default. γ and the largest |μ| enter it."
)


def _centerings(one: Diagnosis) -> str:
    parts = [f"{data.NAMES[name]} {c.dead_pct_topk:.1f} %" for name, c in one.conditions.items()]
    return f"Bars of dead features: {', '.join(parts)} dead by TopK."


def _dimensions(one: Diagnosis) -> str:
    first = one.severity.outlier_dims.iloc[0]
    return (
        f"Scatter plot of |μ| against σ of the dimensions; dimension {int(first['dimension'])} stands out most, with "
        f"|μ|/σ of {first['ratio']:.1f}."
    )


def _dimensions_drawn(one: Diagnosis, most: int) -> str:
    s = one.severity
    drawable = int(((s.std > 0) & (s.mean != 0)).sum())
    words = (
        "A point per dimension; on the line |μ| is σ. Diamonds are those with the largest |μ|/σ, five at most, where "
        "it is above 1; where names would overlap, the first stands."
    )
    if drawable > most:
        words += (
            f" Drawn are {most:,} of {one.d_model:,}: the {data.OUTERMOST} with the largest |μ|/σ, and of the others "
            "some all over their order."
        )
    if drawable < one.d_model:
        words += f" {one.d_model - drawable:,} without a mean or without variation have no place on a logarithm."
    return words


def _spectrum(one: Diagnosis) -> str:
    share = 100 * one.severity.spectrum[0] / one.severity.spectrum.sum()
    return (
        f"Falling line of {one.d_model:,} eigenvalues by rank: the largest explains {share:.1f} % of the variance, and "
        f"the effective rank is {one.severity.effective_rank:.1f}."
    )


def _spectrum_drawn(one: Diagnosis) -> str:
    values = one.severity.spectrum
    kept = int((values > data.SMALLEST * values[0]).sum())
    rank = one.severity.effective_rank
    words = f"Eigenvalues of the covariance by rank. Dashed: the effective rank, exp(entropy), which is {rank:.1f}."
    if kept > data.MOST_EIGENVALUES:
        words += f" About {data.MOST_EIGENVALUES} of {kept:,} are drawn, evenly over the logarithm of the rank."
    if kept < len(values):
        words += f" Left out as rounding: {len(values) - kept:,} below {data.SMALLEST:g} of the largest."
    return words


def _fates(one: Diagnosis, centering: str) -> str:
    dead = one.conditions[centering].dead_pct_topk
    return f"Histogram of the features' alignment with μ by fate, {data.NAMES[centering]}: {dead:.1f} % dead by TopK."


def _fates_after(one: Diagnosis) -> str:
    recommended = "what is recommended" if one.verdict.kind != "fine" else "for comparison"
    name = data.after(one)
    beside = " μ is that of the tokens as they were." if name == "whiten" else ""
    return f"The same features, {data.NAMES[name]}: {recommended}.{beside}"


def _bias(one: Diagnosis) -> str:
    return f"Falling line of steps over the learning rate, {one.bias_half_time():,.0f} steps at SAELens' default."
