"""Every registered table and figure that the inputs have something for."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from sae_outliers.analysis.figures import FIGURES
from sae_outliers.analysis.inputs import Inputs, Product
from sae_outliers.analysis.tables import TABLES
from sae_outliers.analysis.write import FIGURE_KINDS, TABLE_KINDS, Table
from sae_outliers.utils.registry import Registry

REPORT = "report.html"
PREFIXES = ("", "reference_")  # of what is made of our records, and of published ones


def measured_columns() -> list[str]:
    """Return the columns that any table or figure shows."""
    products = [one for registry in (TABLES, FIGURES) for _, one in registry.items()]
    return sorted({column for one in products for column in one.columns})


def make_tables(inputs: Inputs) -> Iterator[Table]:
    for name, one in _possible(TABLES, inputs):
        frame = one.make(inputs)
        if len(frame):
            yield Table(name, frame, one.note)


def make_figures(inputs: Inputs) -> Iterator[tuple[str, Figure]]:
    for name, one in _possible(FIGURES, inputs):
        figure = one.make(inputs)
        if figure is not None:
            yield name, figure


def _possible(registry: Registry[Product], inputs: Inputs) -> Iterator[tuple[str, Product]]:
    for name, one in sorted(registry.items()):
        if one.tells_apart(inputs.by) and len(inputs.rows(one.source)) and not one.is_blank(inputs):
            yield name, one


def left_out(inputs: Inputs) -> list[str]:
    """Say which tables and figures no record has a column for, and which columns these are."""
    blank = {
        name: one for registry in (TABLES, FIGURES) for name, one in sorted(registry.items()) if one.is_blank(inputs)
    }
    return [f"{name} (no record has {' or '.join(one.columns)})" for name, one in blank.items()]


@contextmanager
def replaced(results_dir: Path) -> Iterator[Path]:
    """Yield a folder to write tables/, figures/ and REPORT into. When the block ends without an error, they go to
    results_dir.

    What an earlier call wrote there, of other records, is deleted after that; where the block fails, it stays.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".aggregate.", suffix=".tmp", dir=results_dir) as folder:
        written = Path(folder)
        yield written
        names = {path.relative_to(written) for path in written.rglob("*") if path.is_file()}
        for name in sorted(names):
            (results_dir / name).parent.mkdir(exist_ok=True)
            (written / name).replace(results_dir / name)
    remove_stale(results_dir, names)


def remove_stale(results_dir: Path, keep: Collection[Path] = ()) -> None:
    """Delete what an earlier call wrote: of other records, it must not stand next to what this one writes."""
    for folder, registry, kinds in (("tables", TABLES, TABLE_KINDS), ("figures", FIGURES, FIGURE_KINDS)):
        for name in (f"{prefix}{name}" for prefix in PREFIXES for name in registry):
            for kind in kinds:
                written = Path(folder) / f"{name}.{kind}"
                if written not in keep:
                    (results_dir / written).unlink(missing_ok=True)
    if Path(REPORT) not in keep:
        (results_dir / REPORT).unlink(missing_ok=True)
