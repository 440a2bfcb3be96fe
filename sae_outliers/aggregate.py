"""python -m sae_outliers.aggregate (make aggregate): records -> tables, figures and a summary.

    python -m sae_outliers.aggregate results_dir=results
    python -m sae_outliers.aggregate 'where="train_steps == 0 and n_eval == 20000"'
    python -m sae_outliers.aggregate reference=init_stats.csv expected=paper

`where` is a condition on the columns of the records, in pandas' query language. `reference` is a copy of the
authors' published table of 454 model-layers: the same figures are computed from it and laid beside the own.
`reference_trained` is a copy of their table of trained SAEs, laid beside the own recovery table.

Records of a planted γ are no natural layers: they enter the tables and figures of recovery alone.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import hydra
import pandas as pd
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from sae_outliers.analysis import figures, recovery, recovery_figures, tables
from sae_outliers.analysis.recovery import Trained
from sae_outliers.analysis.reference import in_published_domains, read_reference, read_trained_reference
from sae_outliers.analysis.tables import Mix, Table
from sae_outliers.paths import CONF, PAPER_MODELS
from sae_outliers.results.record import Record, read_records


@dataclass
class AggregateConfig:
    results_dir: str = "results"
    where: str | None = None  # aggregate only the records for which this condition on their columns holds
    allow_mixed: bool = False  # put records with different settings into one table
    # whose layers are expected besides those of the models seen: `paper`, or a folder of model configs
    expected: str | None = None
    reference: str | None = None  # CSV file with the columns of the authors' published table
    reference_trained: str | None = None  # CSV file with the columns of their table of trained SAEs


class Inputs(NamedTuple):
    own: pd.DataFrame | None  # natural layers; None where there are none
    trained: Trained | None  # natural and planted; None where there are none
    published: pd.DataFrame | None
    published_trained: pd.DataFrame | None
    expected: dict[str, range]
    mixed: Sequence[Mix]  # settings in which the records differ, and which the user allowed


ConfigStore.instance().store(name="aggregate_schema", node=AggregateConfig)


@hydra.main(version_base=None, config_path=str(CONF), config_name="aggregate")
def main(config: AggregateConfig) -> None:
    try:
        inputs = read_inputs(config)
    except ValueError as error:
        sys.exit(str(error))
    made = list(all_tables(inputs))
    drawn = dict(all_figures(inputs))
    results_dir = Path(config.results_dir)
    forget_former(results_dir)
    for table in made:
        tables.write_table(table, results_dir / "tables")
    for name, figure in drawn.items():
        figures.write_figure(figure, name, results_dir / "figures")
    print(summary(made, list(drawn), inputs, results_dir))


def forget_former(results_dir: Path) -> None:
    """Delete what a former call wrote: of other records, it must not stand beside what this one writes."""
    kinds = {"tables": ((*NOTES, *recovery.NOTES), ("csv", "md", "tex")), "figures": (FIGURES, ("png", "pdf"))}
    for folder, (names, endings) in kinds.items():
        for name in (*names, *(f"reference_{name}" for name in names)):
            for ending in endings:
                (results_dir / folder / f"{name}.{ending}").unlink(missing_ok=True)


# --- reading and checking -------------------------------------------------------------------------------


def read_inputs(config: AggregateConfig) -> Inputs:
    """Records, reference and expected layers.

    Raises:
        ValueError: there is nothing to aggregate, or something that must not be; the message is one sentence.
    """
    published = read_reference(Path(config.reference)) if config.reference else None
    published_trained = read_trained_reference(Path(config.reference_trained)) if config.reference_trained else None
    expected = layers_listed_in(Path(config.expected)) if config.expected else {}
    records = read_records(Path(config.results_dir))
    if records.empty:
        if published is None and published_trained is None:
            raise ValueError(f"There are no records below {config.results_dir}/runs: run something first")
        return Inputs(None, None, published, published_trained, expected, [])
    records = check_columns(select(check_columns(records), config.where))
    mixed = check_mixed(records, config.allow_mixed)
    natural, trained = records[records["planted_gamma"].isna()], recovery.read_trained(records)
    own = None if natural.empty else natural.reset_index(drop=True)
    return Inputs(own, None if trained.runs.empty else trained, published, published_trained, expected, mixed)


def check_columns(records: pd.DataFrame) -> pd.DataFrame:
    """Raises ValueError where all records lack a column, or one that is never blank has no value in any of them."""
    always = {field.name for field in fields(Record) if "None" not in str(field.type)}
    missing = [
        field.name
        for field in fields(Record)
        if field.name not in records or (field.name in always and records[field.name].isna().all())
    ]
    if missing:
        raise ValueError(f"No record has the column(s) {', '.join(missing)}: they were written by another version")
    return records


def select(records: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The records for which the condition holds.

    Raises:
        ValueError: it is no condition on the records' columns, or holds for none of them.
    """
    if where is None:
        return records
    try:
        keep = records.eval(where, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises anything from SyntaxError to AttributeError on a malformed condition
        raise ValueError(f"where={where!r} is not a condition on the records' columns ({error})") from error
    if not (isinstance(keep, pd.Series) and keep.dtype == bool):
        raise ValueError(f"where={where!r} is not a condition: it does not say yes or no of each record")
    if not keep.any():
        raise ValueError(f"where={where!r} holds for none of the {len(records)} records")
    return records[keep].reset_index(drop=True)


def check_mixed(records: pd.DataFrame, allow: bool) -> list[Mix]:
    """The settings that are mixed, of natural layers together and of planted ones within each source model.

    Raises:
        ValueError: there are any, and `allow` does not let them pass, or the records are of different versions.
    """
    versions = Mix("schema_version", records["schema_version"].value_counts().sort_index())
    if len(versions.counts) > 1:
        raise ValueError(refusal(f"The records differ in {tables.describe_mix([versions])}", "", versions))
    planted = records["planted_gamma"].notna()
    sides = [("The records", "planted_gamma.notna() or " if planted.any() else "", records[~planted])]
    for model, rows in records[planted].groupby("model"):
        others = f"planted_gamma.isna() or model != {_quoted(model)} or "
        sides.append((f"The records of {model} with a planted γ", others, rows))
    mixed = []
    for who, others, rows in sides:
        found = tables.mixed_settings(rows)
        if found and not allow:
            raise ValueError(refusal(f"{who} differ in {tables.describe_mix(found)}", others, found[0]))
        mixed += found
    return mixed


def refusal(what: str, others: str, mix: Mix) -> str:
    """Names a `where` that keeps the commonest value (of the schema the newest), and can be pasted into a shell.

    `others` is the beginning of a condition, which keeps the records that are not concerned.
    """
    values = mix.counts.index.tolist()  # Python values, for their repr
    of_schema = mix.column == "schema_version"
    if mix.only:
        others += f"{mix.only[0]} != {_quoted(mix.only[1])} or "
    where = f"{others}{mix.column} == {_quoted(values[-1] if of_schema else values[int(mix.counts.argmax())])}"
    return (
        f"{what}, so their figures do not belong in one table: narrow them, for example with 'where={_quoted(where)}'"
        + ("" if of_schema else ", or pass allow_mixed=true")
    )


def _quoted(value: object) -> str:
    """As pandas' query language and Hydra's grammar both read it, without single quotes: the shell needs those."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def layers_listed_in(folder: Path) -> dict[str, range]:
    """The layers that the model configs in `folder` offer, by model; `paper` and the project's conf/model: the paper's.

    Raises:
        ValueError: the folder holds no model config, or one lacks its name or last layer (named).
    """
    listed = {}
    is_paper = folder == Path("paper") or folder.resolve() == (CONF / "model").resolve()
    paper = [CONF / "model" / f"{name}.yaml" for name in sorted(PAPER_MODELS)]
    for path in paper if is_paper else sorted(folder.glob("*.yaml")):
        config = OmegaConf.load(path)
        model = config.get("model", config) if isinstance(config, DictConfig) else {}
        if "name" not in model or "last_layer" not in model:
            raise ValueError(f"{path} is no model config: it states no name and last_layer")
        listed[str(model["name"])] = range(model.get("first_layer", 1), model["last_layer"] + 1)
    if not listed:
        raise ValueError(f"expected={folder} holds no model configs (*.yaml)")
    return listed


# --- tables and figures ---------------------------------------------------------------------------------

NOTES = {
    "spearman": (
        "Spearman's ρ of outlier severity with the percentage of features dead at initialisation, "
        "centering=off. Layers of one model are not independent, so there are two bootstrap 95 % intervals "
        f"(percentile, {tables.RESAMPLES} resamples): one resamples layers and is too narrow for a statement "
        "about other models, one resamples whole models and is rough where these are few. Blank: ρ below "
        f"{tables.FEWEST_LAYERS} layers or where one side is constant; the interval over models below "
        f"{tables.FEWEST_MODELS} models, which give too few different resamples; an interval on whose ends all "
        "resamples agree, as they do where the order is perfect."
    ),
    "models": (
        "Per model: layers measured of those expected, post-LN γ over the layers, and the percentage of "
        "features dead at initialisation in the median and the worst layer, with centering off and on. "
        "Dead by TopK includes dead by ReLU."
    ),
    "conditions": (
        "Medians over layers (for `all`: over the layers of all models, so models with more layers weigh "
        "more) of the percentage of dead features. `init` takes all records, whatever the revival, which "
        "changes nothing before training; `trained init`, `end`, FVU and L0 take trained records only, so "
        "compare `end` with `trained init`. `inactive`: the SAE itself, whatever its type, has them active on "
        "no evaluation token. `not fired`: in the last dead_window training tokens."
    ),
    "theory": (
        "Closed form minus measured percentage of features dead at initialisation, centering=off: mean "
        "absolute error (MAE) and mean error (bias), in percentage points. TopK and ReLU are the paper's "
        "forms; the small-γ threshold is ours."
    ),
    "coverage": (
        "Layers measured of those expected, by condition. Expected are the layers up to last_layer of "
        "each model seen, and those of the models that `expected` lists. `trained` counts layers trained "
        "with any revival or without; with one of them, the column that names it."
    ),
}
FIGURES = ("gamma_vs_death", "gamma_by_depth", "death_curves", *recovery_figures.NAMES)
BESIDE = (
    " `published`: the same figures from the reference table, whose domains are used for both sides "
    "(gLM2 under language, protein and genomic as biology). The two sides need not hold the same "
    "layers: see their counts."
)
KEYS = {
    "spearman": ["domain", "severity", "death"],
    "models": ["domain", "model"],
    "theory": ["domain", "formula"],
}


def all_tables(inputs: Inputs) -> Iterator[Table]:
    """The tables of the records, then those of the references beside them."""
    own, published, mixed = inputs.own, inputs.published, mixed_note(inputs.mixed)
    if own is not None:
        frames = table_frames(own, inputs.expected) | {
            "conditions": tables.conditions(own),
            "coverage": tables.coverage(own, inputs.expected),
        }
        yield from (Table(name, frame, NOTES[name] + mixed) for name, frame in frames.items() if len(frame))
    if inputs.trained is not None:
        yield from (table._replace(note=table.note + mixed) for table in recovery.tables(inputs.trained.runs))
    if published is not None:
        theirs = table_frames(published)
        ours = table_frames(in_published_domains(own, published), inputs.expected) if own is not None else {}
        for name, keys in KEYS.items():
            frame = tables.beside(theirs[name], ours.get(name), keys)
            yield Table(f"reference_{name}", frame, NOTES[name] + BESIDE + mixed)
    if inputs.published_trained is not None:
        frame = recovery_beside(inputs.published_trained, inputs.trained)
        yield Table("reference_recovery", frame, recovery.NOTES["recovery"] + BESIDE + mixed)


def recovery_beside(published: pd.DataFrame, trained: Trained | None) -> pd.DataFrame:
    """The own recovery table beside the published one, in the columns of the latter."""
    own = pd.DataFrame() if trained is None else recovery.recovery(trained.runs)
    if len(own):
        own = in_published_domains(own, published).reindex(columns=published.columns)
    return tables.beside(published, own, ["domain", "model", "layer"])


def table_frames(records: pd.DataFrame, expected: dict[str, range] | None = None) -> dict[str, pd.DataFrame]:
    return {
        "spearman": tables.spearman(records),
        "models": tables.models(records, expected),
        "theory": tables.theory(records),
    }


def mixed_note(mixed: Sequence[Mix]) -> str:
    """What allow_mixed let in, for the note beside each table."""
    if not mixed:
        return ""
    return (
        f" Mixed, since allow_mixed=true: {tables.describe_mix(mixed)}. Each setting and seed of a layer is "
        "a row of its own in means, medians and ρ; counts of layers and resampling take them as one."
    )


def all_figures(inputs: Inputs) -> Iterator[tuple[str, Figure]]:
    for prefix, records in {"": inputs.own, "reference_": inputs.published}.items():
        if records is None:
            continue
        off = tables.measured_once(records[records["centering"] == "off"])
        if len(off):
            yield f"{prefix}gamma_vs_death", figures.gamma_vs_death(off)
        yield (
            f"{prefix}gamma_by_depth",
            figures.gamma_by_depth(records.drop_duplicates(["model", "layer", "seed"])),
        )
    if inputs.trained is not None:
        curves = inputs.trained.curves
        natural = curves[curves["planted_gamma"].isna()] if len(curves) else curves
        if len(natural):
            yield "death_curves", figures.death_curves(natural)
        yield from recovery_figures.all_figures(inputs.trained)


# --- the console ----------------------------------------------------------------------------------------


def summary(made: list[Table], drawn: list[str], inputs: Inputs, results_dir: Path) -> str:
    frames = {table.name: table.frame for table in made}
    parts = []
    if inputs.own is not None:
        parts.append(coverage_lines(frames["coverage"]))
    if inputs.published is not None:
        parts.append(spearman_lines("Spearman's ρ, published and own", frames["reference_spearman"]))
    elif inputs.own is not None:
        parts.append(spearman_lines("Spearman's ρ", frames.get("spearman", pd.DataFrame())))
    if "recovery" in frames:
        parts.append(recovery_lines(frames["recovery"]))
    if inputs.mixed:
        parts.append(f"Mixed, since allow_mixed=true: {tables.describe_mix(inputs.mixed)}")
    names = ", ".join(frames)
    parts.append(f"{results_dir}/tables: {names} (.csv, .md, .tex)")
    if drawn:
        parts.append(f"{results_dir}/figures: {', '.join(drawn)} (.png, .pdf)")
    return "\n\n".join(parts)


def coverage_lines(frame: pd.DataFrame) -> str:
    lines = ["Layers measured, by condition (SAE, centering):"]
    for row in frame.to_dict("records"):
        missing = f"; missing: {row['missing']}" if row["missing"] else ""
        counts = f"{row['layers']}/{row['expected']}, {row['trained']} of them trained"
        revivals = {
            str(name).removeprefix("trained "): n for name, n in row.items() if str(name).startswith("trained ")
        }
        counts += "".join(f", {n} with {name}" for name, n in revivals.items() if n)
        lines.append(f"  {row['sae']}, {row['centering']}: {counts}{missing}")
    return "\n".join(lines)


def recovery_lines(frame: pd.DataFrame) -> str:
    """A line per model; where several of its layers were trained, their medians."""
    lines = ["Dead by TopK, % of features, at initialisation -> after training:"]
    for row in recovery.by_model(frame).to_dict("records"):
        ends = [
            f"{name} {row[f'{name} init']:.1f} -> {row[f'{name} end']:.1f}"
            for name in recovery.CONDITIONS.values()
            if not pd.isna(row.get(f"{name} init"))
        ]
        lines.append(f"  {row['model']} ({row['layers']}, γ {row['γ']:.2f}): {'; '.join(ends)}")
    return "\n".join(lines)


def spearman_lines(title: str, frame: pd.DataFrame) -> str:
    """Post-LN γ in each domain, and the other severities overall; the file has the rest."""
    if frame.empty:
        return f"{title}: none, for no record has centering=off"
    shown = frame[(frame["severity"] == tables.SEVERITIES["gamma"]) | (frame["domain"] == "all")]
    text = tables.format_for_display(shown).to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return f"{title}\n{text}"


if __name__ == "__main__":
    main()
