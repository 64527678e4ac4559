import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "asynchronous.py"


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_fast_participants_go_on_and_the_late_update_counts() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    text = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, env=environment, check=True
    ).stdout
    versions = re.findall(r"version (\d+): (fast|slow), staleness (\d+), moved by (\S+)", text)
    assert [int(number) for number, *_ in versions] == list(range(1, 13))
    number, _, staleness, moved = next(one for one in versions if one[1] == "slow")
    assert int(number) == int(staleness) + 1 > 5
    assert 0 < float(moved) < 0.6 / 6**0.5
