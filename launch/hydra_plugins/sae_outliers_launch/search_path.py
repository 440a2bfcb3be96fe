"""Makes further config folders known to Hydra: conf/own/, and the user's own `conf/` in the working directory."""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from sae_outliers.paths import CONF, check_user_conf, config_folders, user_conf


class ConfigFolders(SearchPathPlugin):
    """Appends them, so that a working directory that is another Hydra project does not bring its config.yaml."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = user_conf()
        try:
            if own:
                check_user_conf(own)
        except ValueError as error:
            sys.exit(str(error))  # Hydra would print a traceback
        for folder in config_folders():
            if folder != CONF:
                search_path.append("sae_outliers", f"file://{folder}")
