"""Replicas are killed and paused while clients use them: nothing is lost, and nothing is wrong."""

import shutil
import tempfile
from pathlib import Path

import pytest

from chaos.replica_campaign import ReplicaCampaign
from sizes import size

FAULTS = size("REPLICA_FAULTS", 15)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_nothing_is_lost_or_counted_twice_or_wrong(database: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fedround-replicas-"))
    campaign = ReplicaCampaign(folder, database, "small")
    violations = campaign.run(FAULTS)
    assert violations == [], f"the data is in {folder}"
    shutil.rmtree(folder)
    assert campaign.faults.total() == FAULTS
    assert campaign.num_receipts > 0
