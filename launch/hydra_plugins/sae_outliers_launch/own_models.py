"""Makes `model=hf`, `timm` and `dump` known: they stand in conf/own/model/, where `glob(*)` does not look."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from sae_outliers.paths import CONF

PROVIDER = "own models"
CONF_OWN = CONF / "own"


class OwnModels(SearchPathPlugin):
    """Puts conf/own on Hydra's search path, after conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(PROVIDER, f"file://{CONF_OWN}")
