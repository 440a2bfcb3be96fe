"""Which records may stand in one table: `where=`, and settings in which records must agree.

What is compared follows from the roles that settings have in `config`, and is read from the settings that every record
keeps. No list of settings stands here: one that is added tomorrow is compared from then on.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from sae_outliers.config import Role, role_of

# Options that a column of the record repeats: the column's name is the shorter one to select by.
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
    "train.n_tokens": "n_train",
    "train.lr": "lr",
    "train.b_dec_lr": "b_dec_lr",
    "train.warmup_steps": "warmup_steps",
    "train.decay_from": "decay_from",
    "train.dead_window": "dead_window",
    **{same: same for same in ("preprocessing", "special_tokens", "n_eval", "seed", "sae_seed", "precision")},
}
FILES = "files"  # fingerprints of the local files that a run read; no option of the schema
UNKNOWN = object()  # a setting that a record without settings does not tell
SPEED = "fast_b_dec"  # whether b_dec has a higher learning rate than the rest

Settings = Mapping[str, Any]


class Mix(NamedTuple):
    """A setting in which records differ that one table may not mix."""

    column: str
    counts: pd.Series  # records by value
    only: tuple[str, Any] | None = None  # column and value of the group within which it is compared


# --- settings of records --------------------------------------------------------------------------------


def settings_of_records(records: pd.DataFrame) -> list[Settings]:
    """Return each record's settings; of one that has none, those that its columns repeat, and UNKNOWN for the rest."""
    rows = records.to_dict("records")
    return [row["settings"] if row.get("settings") else _FromColumns(row) for row in rows]


class _FromColumns(dict[str, Any]):
    """Settings of a record that has kept none, from its columns."""

    def __init__(self, row: Mapping[Any, Any]) -> None:
        super().__init__({option: row[column] for option, column in COLUMNS.items() if not _is_blank(row.get(column))})
        for group in ("sae", "revival"):
            options = json.loads(row.get(f"{group}_options") or "{}")
            self.update({f"{group}.{name}": value for name, value in options.items()})

    def get(self, key: str, default: Any = None) -> Any:
        """A column that is empty says null; of an option without a column nothing is known."""
        told = key in COLUMNS or key.startswith(("sae.", "revival."))
        return super().get(key, default if told else UNKNOWN)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def shown(value: Any) -> Any:
    """Return a value as tables and conditions name it: a list as one string, None as null."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(shown(item)) for item in value)}]"
    return value


# --- where ----------------------------------------------------------------------------------------------


def select(records: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Return the records for which the condition holds.

    It may name columns, and in backticks any option that a record's settings hold: `data.tokens_per_item`.

    Raises:
        ValueError: it is not a condition on the records' columns, or holds for none of them.
    """
    if where is None:
        return records
    try:
        keep = with_options(records).eval(where, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises anything from SyntaxError to AttributeError on a malformed condition
        raise ValueError(f"where={where!r} is not a condition on the records' columns ({error})") from error
    if not (isinstance(keep, pd.Series) and keep.dtype == bool):
        raise ValueError(f"where={where!r} is not a condition: it is not a boolean expression")
    if not keep.any():
        raise ValueError(f"where={where!r} holds for none of the {len(records)} records")
    return records[keep].reset_index(drop=True)


def with_options(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with a column for every further option that their settings hold, and SPEED."""
    settings = settings_of_records(records)
    options = dict.fromkeys(option for one in settings for option in one if option not in COLUMNS)
    added: dict[str, Any] = {
        option: pd.Series([_told(one, option) for one in settings], index=records.index, dtype=object)
        for option in options
    }
    if {"b_dec_lr", "lr"} <= set(records):
        added[SPEED] = records["b_dec_lr"] > records["lr"]
    return records.assign(**added)


def _told(settings: Settings, option: str) -> Any:
    value = settings.get(option)
    return "unknown" if value is UNKNOWN else shown(value)


# --- comparability --------------------------------------------------------------------------------------


def mixed_settings(records: pd.DataFrame) -> list[Mix]:
    """Return the settings in which records differ that one table must not mix.

    Settings of the training count among trained records only; those of a network and its data among the records of a
    model, options of a type among the records of that type. Tables tell the values of an axis apart.
    """
    mixed = [Mix("schema_version", counts) for counts in [_counted(records["schema_version"])] if len(counts) > 1]
    settings = settings_of_records(records)
    trained = (records["train_steps"] > 0).to_numpy()
    everyone, those = range(len(records)), [i for i in range(len(records)) if trained[i]]
    labels = _groups(records)
    for option in _compared(settings):
        role = _role(option)
        groups: dict[Any, list[Any]] = {}
        for i in those if role.affects == "training" else everyone:
            value = _compared_value(settings[i], option)
            if value is not UNKNOWN:
                groups.setdefault(labels[role.within][i] if role.within else None, []).append(value)
        for label, values in groups.items():
            counts = _counted(values)
            if len(counts) > 1:
                only = (SPEED if role.within == "b_dec_speed" else role.within, label) if role.within else None
                mixed.append(Mix(COLUMNS.get(option, option), counts, only))
    return mixed


def _groups(records: pd.DataFrame) -> dict[str, list[Any]]:
    """Each record's group, for every way in which a setting may be compared within groups."""
    fast = (records["b_dec_lr"] > records["lr"]).tolist()
    return {name: records[name].tolist() for name in ("model", "sae", "revival", "centering")} | {"b_dec_speed": fast}


def _compared(settings: Sequence[Settings]) -> Iterator[str]:
    """Yield the options that are compared, in the order in which records name them; columns come first."""
    for option in dict.fromkeys([*COLUMNS, *(option for one in settings for option in one)]):
        role = _role(option)
        if role.affects != "nothing" and not role.axis:
            yield option


@cache
def _role(option: str) -> Role:
    """The role of an option; one that the schema no longer has counts as the strongest, since nobody can tell."""
    if option == FILES:
        return Role("activations", within="model")
    try:
        return role_of(option)
    except KeyError:
        return Role("activations")


def _compared_value(settings: Settings, option: str) -> Any:
    value = settings.get(option)
    if option == "train.b_dec_lr" and value is None:
        value = settings.get("train.lr")
    if option == FILES and value is None:
        return UNKNOWN  # a record of an earlier version does not tell
    return shown(value)


def _counted(values: Any) -> pd.Series:
    """How many records there are of each value."""
    counts = Counter(values)
    in_order = sorted(counts, key=lambda value: (isinstance(value, str), value))
    return pd.Series([counts[value] for value in in_order], index=pd.Index(in_order, dtype=object))


def describe_mix(mixed: Sequence[Mix]) -> str:
    """Return for example `n_eval (20000 in 33, 100000 in 2 of the records); seed (0 in 34, 1 in 1 of the records)`."""
    return "; ".join(
        f"{mix.column}{f' of {mix.only[0]}={mix.only[1]}' if mix.only else ''} "
        f"({', '.join(f'{_brief(value)} in {n}' for value, n in mix.counts.items())} of the records)"
        for mix in mixed
    )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_mixed(records: pd.DataFrame, allow: bool) -> list[Mix]:
    """Return the settings that are mixed, of natural layers together and of planted ones within each source model.

    Raises:
        ValueError: there are any, and `allow` does not let them pass, or the records are of different versions.
    """
    versions = Mix("schema_version", _counted(records["schema_version"]))
    if len(versions.counts) > 1:
        raise ValueError(mixed_settings_error(f"The records differ in {describe_mix([versions])}", "", versions))
    planted = records["planted_gamma"].notna()
    sides = [("The records", "planted_gamma.notna() or " if planted.any() else "", records[~planted])]
    for model, rows in records[planted].groupby("model"):
        others = f"planted_gamma.isna() or model != {_quoted(model)} or "
        sides.append((f"The records of {model} with a planted γ", others, rows))
    mixed = []
    for who, others, rows in sides:
        found = mixed_settings(rows)
        if found and not allow:
            raise ValueError(mixed_settings_error(f"{who} differ in {describe_mix(found)}", others, found[0]))
        mixed += found
    return mixed


def mixed_settings_error(what: str, others: str, mix: Mix) -> str:
    """Name a `where` that keeps the commonest value (of the schema the newest), and can be pasted into a shell.

    `others` is the beginning of a condition, which keeps the records that are not concerned.
    """
    values = mix.counts.index.tolist()  # Python values, for their repr
    of_schema = mix.column == "schema_version"
    if mix.only:
        others += f"{mix.only[0]} != {_quoted(mix.only[1])} or "
    value = values[-1] if of_schema else values[int(mix.counts.argmax())]
    where = f"{others}{_condition(mix.column, value)}"
    return (
        f"{what}, so their figures do not belong in one table: narrow them, for example with 'where={_quoted(where)}'"
        + ("" if of_schema else ", or pass allow_mixed=true")
    )


def _condition(column: str, value: Any) -> str:
    if column in COLUMNS.values() and value == "null":
        return f"{column}.isna()"
    name = column if column.isidentifier() else f"`{column}`"
    return f"{name} == {_quoted(value)}"


def _quoted(value: object) -> str:
    """As pandas' query language and Hydra's grammar both read it, without single quotes: the shell needs those."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def measured_once(records: pd.DataFrame, by_sae: bool = False) -> pd.DataFrame:
    """Return one record for each figure at initialisation, so that no layer counts twice.

    At initialisation an SAE does not depend on how it will be trained, nor (unless `by_sae`) on its type: a
    trained record is preferred to one without training, topk to relu. Records that differ in any other setting are
    other figures.
    """
    of_init = [_at_initialisation(one, by_sae) for one in settings_of_records(records)]
    preferred = records.assign(_init=of_init, _type=records["sae"].ne("topk"), _untrained=-records["train_steps"])
    preferred = preferred.sort_values(["_type", "_untrained"], kind="stable")
    preferred = preferred.drop_duplicates(["model", "layer", "centering", "schema_version", "_init"])
    return preferred.sort_index().drop(columns=["_init", "_type", "_untrained"])


def _at_initialisation(settings: Settings, by_sae: bool) -> str:
    """All settings that figures at initialisation depend on, as one key."""
    kept = {
        option: shown(value)
        for option, value in settings.items()
        if _role(option).affects in ("activations", "init") and (by_sae or not _is_of_the_type(option))
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _is_of_the_type(option: str) -> bool:
    return option == "sae.name" or _role(option).within == "sae"
