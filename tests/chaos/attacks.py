"""How much of each attack is run, and what its random choices are drawn from."""

import os

SEED = int(os.environ.get("FEDROUND_CHAOS_SEED", "1"))


def is_long(name: str) -> bool:
    """Tells whether somebody chose a size: then it is for finding something, else for noticing what got worse."""
    return f"FEDROUND_CHAOS_{name}" in os.environ


def size(name: str, small: int) -> int:
    """Returns a size: FEDROUND_CHAOS_NAME, or a small one."""
    return int(os.environ.get(f"FEDROUND_CHAOS_{name}", str(small)))
