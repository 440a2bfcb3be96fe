"""What a config names by `_target_`, built; an error says what went wrong, not where Hydra was."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate


def built(node: Any) -> Any:
    """The object that a config node describes. Raises whatever its constructor raised."""
    try:
        return instantiate(node)
    except InstantiationException as error:
        raise error.__cause__ or error from None
