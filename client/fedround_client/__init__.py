"""The Python SDK of fedround, a coordination server for federated learning.

>>> with fedround_client.connect() as client:  # doctest: +SKIP
...     client.participate(train)

The names of `fedround_client.api` are loaded when the first of them is used: a program that imports this package and
does something else first, as the command does with `--help`, starts faster.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# Before everything that imports grpc.
import fedround_client.quiet_grpc  # noqa: F401 -- for its side effect

if TYPE_CHECKING:
    from fedround_client.api import *  # noqa: F403
    from fedround_client.api import __all__ as __all__
    from fedround_client.errors.client_side import *  # noqa: F403
    from fedround_client.errors.family import *  # noqa: F403
    from fedround_client.errors.reason import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        # A module, before the public names: `from fedround_client import config` asks here, while these are loaded.
        if find_spec(f"fedround_client.{name}") is not None:
            return import_module(f"fedround_client.{name}")
        # Kept: without that, fr.Update would look for a module in every round.
        return globals().setdefault(name, getattr(import_module("fedround_client.api"), name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
