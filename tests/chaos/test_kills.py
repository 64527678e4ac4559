"""A small run of what `make chaos` does at length: kills, restarts, and then nothing is lost and nothing is wrong."""

from pathlib import Path

import pytest

from chaos.driver import Tally, run
from chaos.points import kill_points

KILLS = 15


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_counted_twice_or_wrong(database: str, tmp_path: Path) -> None:
    tally = Tally()
    run(KILLS, "small", tmp_path, tally, databases=["postgresql" if database else "sqlite"])
    assert tally.violations == []
    assert sum(tally.kills.values()) >= KILLS
    # Else the run proves less than it says.
    assert tally.counts["receipts"] > KILLS
    assert set(kill_points()) - tally.reached == set()
