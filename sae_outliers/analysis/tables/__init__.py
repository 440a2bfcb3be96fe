"""Tables of an aggregation: one module each, with its note. A module that is added here is a table that is written."""

from collections.abc import Callable

import pandas as pd

from sae_outliers.analysis.inputs import Inputs, Product, Source
from sae_outliers.utils.registry import Registry

MakeTable = Callable[[Inputs], pd.DataFrame]

TABLES: Registry[Product] = Registry("table", package=__name__)


def table(
    name: str,
    note: str,
    source: Source,
    columns: tuple[str, ...] = (),
    keys: tuple[str, ...] = (),
    apart: tuple[str, ...] = (),
) -> Callable[[MakeTable], MakeTable]:
    """Register a function as the table `<name>.csv`; see `Product` for the arguments."""

    def add(make: MakeTable) -> MakeTable:
        TABLES.register(name)(Product(make, source, columns, note, keys, apart))
        return make

    return add
