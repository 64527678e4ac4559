"""One call of the storage layer fails: nothing is lost, nothing is wrong, and whoever tries again succeeds.

FEDROUND_CHAOS_FAULTS=all fails all calls, one after the other, which takes many minutes; otherwise one of each name.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from chaos.faults import Fault
from chaos.scenario import survive

ALL = os.environ.get("FEDROUND_CHAOS_FAULTS") == "all"
NAMES = {"open", "write", "pwritev", "fsync", "fdatasync", "replace", "unlink", "put"}
NAMES |= {"BEGIN", "INSERT", "UPDATE", "COMMIT"}


def chosen(faults: list[Fault], database: str) -> list[Fault]:
    """All faults, or one of each call; what is done with files is the same whatever the database.

    The one is drawn from the first half: the last calls may not come again, as threads are not so orderly.
    """
    if ALL:
        return faults
    if database:
        faults = [fault for fault in faults if fault.call.isupper()]
    draw, names = Random(4), sorted({fault.call for fault in faults})
    by_name = [[fault for fault in faults if fault.call == name] for name in names]
    return [draw.choice(some[: (len(some) + 1) // 2]) for some in by_name]


@pytest.mark.attack
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.chaos)], indirect=True)
def test_any_call_may_fail(copied: Callable[[], str], tmp_path: Path) -> None:
    database = copied()
    dry, violations = survive(None, tmp_path / "dry", database)
    assert violations == []
    assert set(dry.calls) >= NAMES
    fired: Counter[str] = Counter()
    for number, fault in enumerate(chosen(list(dry.faults()), database)):
        storage, violations = survive(fault, tmp_path / str(number), copied())
        assert violations == [], fault
        fired[fault.call] += storage.fired.is_set()
    assert all(fired[name] for name in NAMES if name.isupper() or not database), fired
