"""Which records are aggregated: `where=`, and the refusal to mix those whose settings differ.

What may stand in one table follows from what each setting is declared to affect (`config.setting`): no setting is
named here for being compared or not.
"""

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_outliers.analysis.where import condition
from sae_outliers.config import role_of, roles

# Settings that have a column of their own in the records, by which `where=` may name them.
COLUMNS = {
    "model.name": "model",
    "data.name": "data",
    "data.rescale_mean": "planted_gamma",
    "sae.name": "sae",
    "sae.n_features": "n_features",
    "sae.k": "k",
    "init.name": "init",
    "init.b_dec": "init_b_dec",
    "revival.name": "revival",
    "centering.name": "centering",
    "train.steps": "train_steps",
    "train.batch_size": "train_batch_size",
    "train.lr": "lr",
    "train.b_dec_lr": "b_dec_lr",
    "train.freeze_b_dec": "freeze_b_dec",
    "train.input_scale": "input_scale",
    "train.warmup_steps": "warmup_steps",
    "train.decay_from": "decay_from",
    "train.dead_window": "dead_window",
    "preprocessing": "preprocessing",
    "precision": "precision",
    "special_tokens": "special_tokens",
    "n_eval": "n_eval",
    "seed": "seed",
    "sae_seed": "sae_seed",
}
OPTION_COLUMNS = {"sae.": "sae_options", "revival.": "revival_options"}  # JSON of a type's own options
FILES = "files"  # of local files that a run read: former records lack it
AT_INIT = ("activations", "init")
SEEDS = ("seed", "sae_seed")


class Scope(NamedTuple):
    """The records among which a setting is compared: `label` names them, and `outside` holds for the others."""

    label: str
    outside: str


class Mix(NamedTuple):
    """A setting in which records differ that one table may not mix.

    Attributes:
        setting: its column in the records, or its option where it has none.
        counts: records by value, in ascending order.
        scope: None where all are compared.
    """

    setting: str
    counts: dict[Any, int]
    scope: Scope | None = None


# --- where= ---------------------------------------------------------------------------------------------


def select(records: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Return the records for which the condition holds.

    It may name their columns and, in backticks, any option that determines a result: `data.tokens_per_item` == 8.

    Raises:
        ValueError: it is no condition on the records' columns, or holds for none of them.
    """
    if where is None:
        return records
    options = settings_table(records)
    columns = pd.concat([records, options[[key for key in options if key not in records]]], axis="columns")
    keep = condition(where, columns)
    if not keep.any():
        raise ValueError(f"where={where!r} holds for none of the {len(records)} records")
    return records[keep].reset_index(drop=True)


def with_settings(records: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the records with a column for each of the settings, which are named as in `Mix`.

    Raises:
        ValueError: one is no setting that determines a result of these records.
    """
    options = settings_table(records).rename(columns=COLUMNS) if names else pd.DataFrame()
    for name in names:
        if name not in options:
            raise ValueError(f"by={name} is no setting of these records; they have {', '.join(map(str, options))}")
    return records.assign(**{name: options[name] for name in names if name not in records})


# --- settings of records --------------------------------------------------------------------------------


def settings_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return the settings that determine each record's result, a column per option in the schema's order.

    Cells are what JSON has for scalars; lists and the like are JSON text, so that a condition can name them. None: not
    set, or not known where a record keeps no settings and the option has no column.
    """
    stated = records["settings"] if "settings" in records else pd.Series(None, index=records.index, dtype=object)
    rows = [
        _settings_in_columns(row) if settings is None else settings
        for settings, row in zip(map(_mapping, stated), records.to_dict("records"), strict=True)
    ]
    keys = sorted({key for row in rows for key in row}, key=_place)
    cells = {key: [_scalar(row.get(key)) for row in rows] for key in keys}
    return pd.DataFrame(cells, index=records.index, dtype=object)


def _mapping(settings: Any) -> Mapping[str, Any] | None:
    return settings if isinstance(settings, Mapping) else None


def _settings_in_columns(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what the columns of a record tell of its settings, for one whose config is lost."""
    found = {key: row.get(column) for key, column in COLUMNS.items()}
    found["train.n_tokens"] = row.get("n_train")
    for prefix, column in OPTION_COLUMNS.items():
        text = row.get(column)
        found |= {prefix + key: value for key, value in json.loads(text if isinstance(text, str) else "{}").items()}
    trained = (row.get("train_steps") or 0) > 0
    return {key: value for key, value in found.items() if trained or role_of(key).affects != "training"}


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value if isinstance(value, str | bool | int | float) else json.dumps(value, sort_keys=True)


def _place(key: str) -> tuple[int, str]:
    """Return the place of a setting in the schema; an argument or option stands with what it belongs to."""
    order = list(roles())
    parents = [key.rsplit(".", depth)[0] for depth in range(key.count(".") + 1)]
    for name in parents:
        if name in order:
            return order.index(name), key
    of_group = [place for place, name in enumerate(order) if name.startswith(f"{parents[-1]}.")]
    return (of_group[-1] if of_group else len(order)), key


def _is_known(key: str, records: pd.DataFrame, options: pd.DataFrame) -> pd.Series:
    """Tell for each record whether an absent value means that the option is not set.

    Columns hold all options of a type, and settings, where there are any, hold everything but the files.
    """
    known = options[key].notna()
    if key != FILES and "settings" in records:
        known |= records["settings"].map(_mapping).notna()
    return known | (role_of(key).within in ("sae", "revival"))


# --- which records may stand together -------------------------------------------------------------------


def mixed_settings(records: pd.DataFrame) -> list[Mix]:
    """Return the settings in which records differ that one table may not mix, in the schema's order.

    Settings of the training are compared among trained records only, and each within what its role says.
    """
    options = settings_table(records)
    trained = records["train_steps"] > 0
    found = [Mix("schema_version", _count(records["schema_version"]))]
    for key in map(str, options):
        known, of = _is_known(key, records, options), role_of(key)
        if of.affects == "nothing" or of.axis:
            continue
        rows = known & trained if of.affects == "training" else known
        for scope, chosen in _scopes(of.within, records[rows]):
            found.append(Mix(COLUMNS.get(key, key), _count(options[key].loc[chosen]), scope))
    return [mix for mix in found if len(mix.counts) > 1]


def _scopes(within: str, records: pd.DataFrame) -> Iterator[tuple[Scope | None, pd.Index]]:
    """Split records into those that are compared with one another."""
    if not within:
        yield None, records.index
    elif within == "b_dec_speed":
        records = records[~records["freeze_b_dec"]]  # of a frozen one the rate says nothing
        faster = records["b_dec_lr"] > records["lr"]
        yield Scope("b_dec_lr > lr", "b_dec_lr <= lr"), records.index[faster]
        yield Scope("b_dec_lr <= lr", "b_dec_lr > lr"), records.index[~faster]
    else:
        for name, rows in records.groupby(within):
            yield Scope(f"{within}={name}", f"{within} != {_quoted(name)}"), rows.index


def _count(values: Iterable[Any]) -> dict[Any, int]:
    counts = Counter(map(_scalar, values))
    return {value: counts[value] for value in sorted(counts, key=_ascending)}


def _ascending(value: Any) -> tuple[int, Any]:
    """Order numbers before texts before None."""
    if value is None:
        return 2, 0
    return (1, value) if isinstance(value, str) else (0, value)


def describe_mix(mixed: Sequence[Mix]) -> str:
    """For example `n_eval (20000 in 33, 100000 in 2 of the records); seed (0 in 34, 1 in 1 of the records)`."""
    return "; ".join(
        f"{mix.setting}{f' of {mix.scope.label}' if mix.scope else ''} "
        f"({', '.join(f'{_shown(value)} in {n}' for value, n in mix.counts.items())} of the records)"
        for mix in mixed
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def check_mixed(records: pd.DataFrame, allow: bool, by: Collection[str] = ()) -> list[Mix]:
    """Return the settings that are mixed, of natural layers together and of planted ones within each source model.

    Where runs are told apart `by` settings, these are not mixed, and seeds are repetitions.

    Raises:
        ValueError: there are any, and `allow` does not let them pass, or the records are of different versions.
    """
    apart = {*by, *SEEDS} if by else set()
    versions = Mix("schema_version", _count(records["schema_version"]))
    if len(versions.counts) > 1:
        raise ValueError(mixed_settings_error(f"The records differ in {describe_mix([versions])}", "", versions))
    planted = records["planted_gamma"].notna()
    sides = [("The records", "planted_gamma.notna() or " if planted.any() else "", records[~planted])]
    for model, rows in records[planted].groupby("model"):
        others = f"planted_gamma.isna() or model != {_quoted(model)} or "
        sides.append((f"The records of {model} with a planted γ", others, rows))
    mixed = []
    for who, others, rows in sides:
        found = [mix for mix in mixed_settings(rows) if mix.setting not in apart]
        if found and not allow:
            raise ValueError(mixed_settings_error(f"{who} differ in {describe_mix(found)}", others, found[0]))
        mixed += found
    return mixed


def mixed_settings_error(what: str, others: str, mix: Mix) -> str:
    """Name a `where` that keeps the commonest value (of the schema the newest), and can be pasted into a shell.

    `others` is the beginning of a condition, which keeps the records that are not concerned.
    """
    of_schema = mix.setting == "schema_version"
    value = max(mix.counts) if of_schema else max(mix.counts, key=lambda value: mix.counts[value])
    name = mix.setting if mix.setting.isidentifier() else f"`{mix.setting}`"
    outside = f"{mix.scope.outside} or " if mix.scope else ""
    where = f"{others}{outside}{name}" + (".isna()" if value is None else f" == {_quoted(value)}")
    return (
        f"{what}, so their figures do not belong in one table: narrow them, for example with "
        f"{shlex.quote(f'where={_quoted(where)}')}" + ("" if of_schema else f", {_others(mix)}")
    )


def _others(mix: Mix) -> str:
    return f"tell them apart with {shlex.quote(f'by=[{mix.setting}]')}, or pass allow_mixed=true"


def _quoted(value: object) -> str:
    """Quote as pandas' query language and Hydra's grammar both read it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def mixed_note(mixed: Sequence[Mix]) -> str:
    """Say what allow_mixed let in, for the note below each table."""
    if not mixed:
        return ""
    return (
        f" Mixed, since allow_mixed=true: {describe_mix(mixed)}. Each setting and seed of a layer is "
        "a row of its own in means, medians and ρ; counts of layers and resampling take them as one."
    )


# --- one record for each figure at initialisation -------------------------------------------------------


def measured_once(records: pd.DataFrame, by_sae: bool = False) -> pd.DataFrame:
    """Return one record for each figure at initialisation, so that no layer counts twice.

    At initialisation an SAE does not depend on how it will be trained, nor (unless `by_sae`) on its type: a
    trained record is preferred to one without training, topk to relu.
    """
    if records.empty:
        return records
    options = settings_table(records)
    key = records[["model", "layer", "centering", "schema_version", "planted_gamma", *(["sae"] if by_sae else [])]]
    for name in map(str, options):
        of = role_of(name)
        of_type = name == "sae.name" or of.within == "sae"
        if of.affects in AT_INIT and (by_sae or not of_type):
            key = key.assign(**{name: _filled(name, records, options)})
    preferred = pd.DataFrame({"type": records["sae"].ne("topk"), "untrained": -records["train_steps"]})
    order = preferred.sort_values(["type", "untrained"], kind="stable").index
    return records[~key.loc[order].duplicated().reindex(records.index)]


def _filled(key: str, records: pd.DataFrame, options: pd.DataFrame) -> pd.Series:
    """Return a setting's values; where a record does not know its own, the first that its model has."""
    known = _is_known(key, records, options)
    if known.all():
        return options[key]
    first = options.loc[known, key].groupby(records.loc[known, "model"]).agg(lambda values: values.iloc[0])
    return options[key].where(known, records["model"].map(first))
