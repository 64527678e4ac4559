"""A small run of what `make chaos` does at length: kills, restarts, and then nothing is lost and nothing is wrong."""

import shutil
import tempfile
from pathlib import Path

import pytest

from chaos.driver import Tally, run
from chaos.points import kill_points

KILLS = 15


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_counted_twice_or_wrong(database: str) -> None:
    # Not in tmp_path: another pytest that starts meanwhile would close it to PostgreSQL, which runs as another user.
    folder, tally = Path(tempfile.mkdtemp(prefix="fedround-kills-")), Tally()
    run(KILLS, "small", folder, tally, databases=["postgresql" if database else "sqlite"])
    assert tally.violations == [], f"the data is in {folder}"
    shutil.rmtree(folder)
    assert sum(tally.kills.values()) >= KILLS
    # Else the run proves less than it says.
    assert tally.counts["receipts"] > KILLS
    assert set(kill_points()) - tally.reached == set()
    assert tally.counts["large_updates"] > 0
    assert tally.counts["files_made_anew"] > 0
