"""The sizes of suites that can be run for any length of time, and the seed of their random choices."""

import os

SEED = int(os.environ.get("FEDROUND_CHAOS_SEED", "1"))
IS_LONG = "FEDROUND_CHAOS_SEED" in os.environ
"""Whether this is a long run, which is to find something new; a short one does the same each time."""


def size(name: str, small: int) -> int:
    """Returns FEDROUND_CHAOS_<name>, which `make chaos` sets, or a small size."""
    return int(os.environ.get(f"FEDROUND_CHAOS_{name}", str(small)))
