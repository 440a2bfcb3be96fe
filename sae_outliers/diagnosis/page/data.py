"""What the page shows of a diagnosis, a frame a figure, each with a row per mark and the number of its layer.

What grows with the width of a model or with its layers is thinned out to a bound, so that the page stays small.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_outliers.diagnosis.result import LR, Diagnosis
from sae_outliers.diagnosis.severity import Severity
from sae_outliers.diagnosis.verdict import FINE
from sae_outliers.results.features import Fate
from sae_outliers.sae.evaluation import ALWAYS_ON
from sae_outliers.stats.theory import BIAS_HALF_TIME_LR

MOST_EIGENVALUES = 150  # of a layer
MOST_DIMENSIONS, FEWEST_DIMENSIONS = 24_000, 150  # of all layers together, and of one
OUTERMOST = 50  # dimensions with the largest |μ|/σ, which are never left out
SMALLEST = 1e-12  # of the largest eigenvalue: below it there is nothing but rounding
ROOM = 0.05  # around the points, of what they span
APART = (0.14, 0.06)  # names of dimensions, as shares of the width and the height of their figure
BINS = 40  # of the alignment with μ
LEARNING_RATES = np.unique([*np.geomspace(1e-5, 1e-2, 19), *BIAS_HALF_TIME_LR, LR])
# in the order in which they are stacked
FATES = ("never positive", "positive, never selected", "alive", "always on")
PREPROCESSINGS = {"postln": "post-LN"}  # names for reading
NAMES = {"off": "as it is", "mean": "mean subtracted", "geometric_median": "geometric median subtracted",
         "whiten": "whitened"}  # fmt: skip


def number_of(one: Diagnosis) -> int:
    """Return the layer's number; 0 for activations by themselves."""
    return one.layer or 0


def after(one: Diagnosis) -> str:
    """Return the centering that is shown beside none: the recommended one, or the mean where none is."""
    return "mean" if one.verdict.kind == FINE else one.verdict.centering


# --- of all layers --------------------------------------------------------------------------------------


def layers(found: Sequence[Diagnosis]) -> pd.DataFrame:
    """A row per layer: what its figures draw once."""
    rows = [{"layer": number_of(one), "effective_rank": one.severity.effective_rank} for one in found]
    return pd.DataFrame(rows)


def gammas(found: Sequence[Diagnosis]) -> pd.DataFrame:
    """A row per layer and way of taking the activations: γ, and the verdict."""
    rows = [
        {"layer": number_of(one), "of": name, "gamma": gamma, "verdict": one.verdict.kind}
        for one in found
        for name, gamma in gammas_of(one).items()
    ]
    return pd.DataFrame(rows)


def gammas_of(one: Diagnosis) -> dict[str, float]:
    """Return γ as the SAE is given the activations, and where that is another, post-LN and raw."""
    s = one.severity
    given = PREPROCESSINGS.get(one.preprocessing, one.preprocessing)
    others = {"post-LN": s.gamma_postln, "raw": s.gamma_raw}
    return {f"{given}, as given": s.gamma} | {name: gamma for name, gamma in others.items() if name != given}


def centerings(found: Sequence[Diagnosis]) -> pd.DataFrame:
    """A row per layer and centering: dead by TopK and by ReLU in percent, always on, γ, what more tokens would show."""
    rows = [
        {
            "layer": number_of(one),
            "centering": NAMES[name],
            "topk": condition.dead_pct_topk,
            "relu": condition.dead_pct_relu,
            "always_on": condition.always_on,
            "gamma": condition.gamma,
            "unseen": condition.unseen.pct,
        }
        for one in found
        for name, condition in one.conditions.items()
    ]
    return pd.DataFrame(rows)


# --- of a layer -----------------------------------------------------------------------------------------


def spectrum(one: Diagnosis) -> pd.DataFrame:
    """The eigenvalues of the covariance by rank, evenly thinned out over the logarithm of it."""
    values = one.severity.spectrum
    kept = int((values > SMALLEST * values[0]).sum())
    ranks = np.unique(np.geomspace(1, kept, min(kept, MOST_EIGENVALUES)).round().astype(int))
    rows = {
        "layer": number_of(one),
        "rank": ranks,
        "eigenvalue": values[ranks - 1],
        "explained": 100 * values.cumsum()[ranks - 1] / values.sum(),
    }
    return pd.DataFrame(rows)


def dimensions(one: Diagnosis, most: int) -> pd.DataFrame:
    """|μ| and σ of at most so many dimensions; those that do not vary or have no mean have no place on a logarithm."""
    s = one.severity
    drawn = np.flatnonzero((s.std > 0) & (s.mean != 0))
    ratio = np.abs(s.mean[drawn]) / s.std[drawn]
    chosen = drawn[spread(np.argsort(-ratio, kind="stable"), most)]
    rows = {
        "layer": number_of(one),
        "dimension": chosen,
        "mean": s.mean[chosen],
        "size": np.abs(s.mean[chosen]),
        "std": s.std[chosen],
        "ratio": np.abs(s.mean[chosen]) / s.std[chosen],
        "kind": np.where(np.isin(chosen, outliers(s)), "largest |μ|/σ", "other"),
    }
    made = pd.DataFrame(rows)
    return made.assign(label=labels(made))


def labels(rows: pd.DataFrame) -> list[str]:
    """Return the name beside each point that stands out, unless a name would lie over that of one which does more."""
    places = np.log(rows[["std", "size"]].to_numpy())
    places = places / np.maximum(np.ptp(places, axis=0), 1e-9)
    named: list[int] = []
    for i in rows.index[rows["kind"] != "other"]:  # the frame begins with those that stand out most
        apart = np.abs(places[named] - places[i]) > APART
        if apart.any(axis=1).all():
            named.append(i)
    return [str(dimension) if i in named else "" for i, dimension in enumerate(rows["dimension"])]


def outliers(s: Severity) -> list[int]:
    """Return the dimensions that are named in the figure: of those that stand out most, the ones that do."""
    found = s.outlier_dims
    return [] if found.empty else found.loc[found["ratio"] > 1, "dimension"].astype(int).to_list()


def spread(ordered: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of these: the first OUTERMOST, and of the others some all over their order."""
    if len(ordered) <= most:
        return ordered
    first, others = ordered[:OUTERMOST], ordered[OUTERMOST:]
    return np.concatenate([first, others[np.linspace(0, len(others) - 1, most - OUTERMOST).round().astype(int)]])


def dimensions_each(n_layers: int) -> int:
    """Return how many dimensions of a layer are drawn, where there are so many layers."""
    return max(FEWEST_DIMENSIONS, MOST_DIMENSIONS // n_layers)


def fates(one: Diagnosis, centering: str) -> pd.DataFrame:
    """How many features of the SAE at initialisation have which fate, by their alignment with μ."""
    features = one.features
    named = names_of(features[f"fate_{centering}"].to_numpy(), features[f"active_{centering}"].to_numpy() > ALWAYS_ON)
    return histogram(number_of(one), features["alignment"].to_numpy(), named)


def trained_fates(one: Diagnosis) -> pd.DataFrame:
    """How many features of the trained SAE have which fate, by their alignment with μ; empty without one."""
    if one.trained is None:
        return pd.DataFrame()
    features = one.trained.features
    named = names_of(features["fate"].to_numpy(), features["always_on"].to_numpy())
    return histogram(number_of(one), features["alignment"].to_numpy(), named)


def names_of(fate: NDArray[np.int8], always_on: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the place of each feature's fate in FATES."""
    place = np.select([fate == Fate.NEVER_POSITIVE, fate == Fate.NEVER_SELECTED], [0, 1], default=2)
    return np.where((place == 2) & always_on, 3, place)


def histogram(layer: int, alignment: NDArray[np.floating], place: NDArray[np.int64]) -> pd.DataFrame:
    """A row per bin and fate: how many features, and from where to where their bar reaches."""
    end = max(0.01, float(np.nanmax(np.abs(alignment))) * 1.0001)
    edges = np.linspace(-end, end, BINS + 1)
    below, rows = np.zeros(BINS), []
    for number, name in enumerate(FATES):
        counts, _ = np.histogram(alignment[place == number], edges)
        rows += [
            {"layer": layer, "low": low, "high": high, "fate": name, "features": n, "below": b, "top": b + n}
            for low, high, n, b in zip(edges[:-1], edges[1:], counts, below, strict=True)
            if n
        ]
        below += counts
    return pd.DataFrame(rows)


def bias(one: Diagnosis) -> pd.DataFrame:
    """About how many steps a b_dec that is left to itself needs, by learning rate; nothing where all is fine."""
    if one.verdict.kind == FINE or not one.severity.gamma > 0:
        return pd.DataFrame()
    low, high = BIAS_HALF_TIME_LR
    within = (low <= LEARNING_RATES) & (high >= LEARNING_RATES)
    rows = {
        "layer": number_of(one),
        "lr": LEARNING_RATES,
        "steps": [one.bias_half_time(lr=float(lr)) for lr in LEARNING_RATES],
        "within": np.where(within, "measured", "extrapolated"),
        "default": LEARNING_RATES == LR,
    }
    return pd.DataFrame(rows)


# figure -> whether its axes are logarithmic, and the columns that lie along x and y
AXES = {
    "dimensions": (True, ("std",), ("size", "std")),
    "spectrum": (True, ("rank",), ("eigenvalue",)),
    "fates": (False, ("low", "high"), ("below", "top")),
    "bias": (True, ("lr",), ("steps",)),
}


def extent(figure: str, rows: pd.DataFrame) -> dict[str, float]:
    """Return where the axes of one layer's figure begin and end; on logarithms with some room around its rows."""
    logarithmic, *along = AXES[figure]
    found: dict[str, float] = {}
    for axis, columns in zip("xy", along, strict=True):
        values = rows[list(columns)].to_numpy(dtype=float)
        low, high = float(values.min()), float(values.max())
        if logarithmic:
            room = (high / low) ** ROOM if high > low else 2.0
            low, high = low / room, high * room
        found |= {f"{axis}_low": low, f"{axis}_high": high}
    return found


def frames(found: Sequence[Diagnosis]) -> dict[str, pd.DataFrame]:
    """Return the datasets of the page: those of which there are any rows."""
    most = dimensions_each(len(found))
    made = {
        "layers": layers(found),
        "gammas": gammas(found),
        "centerings": centerings(found),
        "spectrum": _together(spectrum(one) for one in found),
        "dimensions": _together(dimensions(one, most) for one in found),
        "fates_off": _together(fates(one, "off") for one in found),
        "fates_after": _together(fates(one, after(one)) for one in found),
        "fates_trained": _together(trained_fates(one) for one in found),
        "bias": _together(bias(one) for one in found),
    }
    return {name: frame for name, frame in made.items() if len(frame)}


def _together(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    some = [part for part in parts if len(part)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame()
