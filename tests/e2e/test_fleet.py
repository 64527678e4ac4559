"""The benchmark of fleets, at a small size: the version of a round through relays is the mean of all updates."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SIZES = ("--clients", "40", "--relays", "2", "--registered", "1200", "--calls", "30", "--turns", "1")


@pytest.mark.examples
def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/fleet.py", "--discard", "--folder", str(tmp_path), *SIZES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "'digest_is_that_of_the_flat_mean': True" in done.stdout
