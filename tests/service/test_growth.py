"""A server is as large behind many rounds as behind a few, counted in its objects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.growth import ROUNDS

TESTS = Path(__file__).parents[1]


@pytest.mark.chaos
def test_no_object_stays_of_a_round(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.growth", str(tmp_path / "data")]
    path = os.pathsep.join(filter(None, [str(TESTS), *sys.path]))
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr
    grown = json.loads(ended.stdout.splitlines()[-1])
    assert {name: more for name, more in grown.items() if more >= ROUNDS} == {}
