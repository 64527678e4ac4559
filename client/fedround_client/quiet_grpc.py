"""Imports gRPC without the log of its C core, which writes raw lines to the terminal of any program that uses the SDK.

The core reads the variable GRPC_VERBOSITY while grpc is imported, so this module comes before all others that need
grpc. Whoever sets the variable keeps the log. What fails is raised as an error with a sentence in any case.
"""

from __future__ import annotations

import os

_VARIABLE = "GRPC_VERBOSITY"
_chosen = os.environ.get(_VARIABLE)

os.environ.setdefault(_VARIABLE, "NONE")
import grpc  # noqa: E402, F401 -- after the variable is set, and for the side effect

if _chosen is None:
    # Child processes, such as the server of `fedround serve`, choose for themselves.
    del os.environ[_VARIABLE]
