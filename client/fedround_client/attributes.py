"""What a participant says of itself to the actors of its trainings."""

from __future__ import annotations

import platform

DISTRIBUTION = "fedround"
MAX_VALUE = 200
"""Characters of a value."""


def own_attributes() -> dict[str, str]:
    """Returns the versions of the SDK and of Python, and the platform."""
    found = {"sdk": f"fedround {_version()}", "python": platform.python_version(), "platform": platform.platform()}
    return {name: value[:MAX_VALUE] for name, value in found.items()}


def _version() -> str:
    # Takes as long to load as a tenth of the SDK, and only participants need it.
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        # The sources are used as they are.
        return "unknown"
