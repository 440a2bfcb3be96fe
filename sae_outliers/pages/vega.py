"""Vega, Vega-Lite and vega-embed as one script, out of vl-convert."""

from importlib.metadata import version
from pathlib import Path

import altair as alt

from sae_outliers.utils.package_cache import converted

GLOBALS = "window.vegaEmbed = vegaEmbed;"


def vega_script() -> str:
    """Return the script, which defines `vegaEmbed`; it is bundled once (2 s) and kept in the cache.

    Where nothing can be written there, it is bundled each time.
    """
    name = f"vega-lite-{_vega_lite()}-vl-convert-{version('vl-convert-python')}.js"
    try:
        return converted(name, _write_bundle).read_text("utf-8")
    except OSError:
        return _bundle()


def _write_bundle(path: Path) -> None:
    path.write_text(_bundle(), encoding="utf-8")


def _bundle() -> str:
    from vl_convert import javascript_bundle

    return javascript_bundle(GLOBALS, vl_version=_vega_lite())


def _vega_lite() -> str:
    """Return the version that Altair's charts are written in, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
