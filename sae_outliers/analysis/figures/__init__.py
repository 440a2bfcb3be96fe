"""Figures of an aggregation: one module each. A module that is added here is a figure that is written."""

from collections.abc import Callable

from matplotlib.figure import Figure

from sae_outliers.analysis.inputs import Inputs, Product, Source
from sae_outliers.utils.registry import Registry

MakeFigure = Callable[[Inputs], Figure | None]

FIGURES: Registry[Product] = Registry("figure", package=__name__)


def figure(
    name: str, source: Source, columns: tuple[str, ...] = (), apart: tuple[str, ...] = ()
) -> Callable[[MakeFigure], MakeFigure]:
    """Register a function as the figure `<name>.png`, None where there is nothing to draw; see `Product`."""

    def add(make: MakeFigure) -> MakeFigure:
        FIGURES.register(name)(Product(make, source, columns, apart=apart))
        return make

    return add
