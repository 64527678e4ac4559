"""How background work logs that something does not answer."""

import logging

from fedround_server.domain.errors import ObjectsUnavailable, StoreUnavailable


def level_of(error: Exception) -> int:
    """Returns the level of an error of work that is repeated: outages of database and object store are logged once."""
    return logging.DEBUG if isinstance(error, StoreUnavailable | ObjectsUnavailable) else logging.WARNING
