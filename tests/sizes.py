"""The sizes of suites that can be run for any length of time, and the seed of their random choices."""

import os

from hypothesis import HealthCheck, Phase, settings

SEED = int(os.environ.get("FEDROUND_CHAOS_SEED", "1"))
IS_LONG = "FEDROUND_CHAOS_SEED" in os.environ
"""Whether this is a long run, which is to find something new; a short one does the same each time."""


def size(name: str, small: int) -> int:
    """Returns FEDROUND_CHAOS_<name>, which `make chaos` sets, or a small size."""
    return int(os.environ.get(f"FEDROUND_CHAOS_{name}", str(small)))


def examples(few: int, many: int) -> settings:
    """Returns the settings of a property test of a store: so many examples in a short run, and in a long one.

    One that fails is not made smaller: that would take minutes.
    """
    return settings(
        max_examples=many if IS_LONG else few,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
