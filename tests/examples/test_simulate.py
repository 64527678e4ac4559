import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "simulate.py"


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_the_simulation_learns_and_is_reproducible() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(workers: int) -> str:
        command = [sys.executable, str(EXAMPLE), "--clients=40", "--rounds=4", f"--workers={workers}"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    text = run(2)
    *versions, last = text.splitlines()
    accuracies = [float(line.rpartition(" ")[2]) for line in versions]
    assert [line.partition(":")[0] for line in versions] == [f"version {number}" for number in range(1, 5)]
    assert accuracies[-1] > accuracies[0]
    assert float(re.findall(r"accuracy on all images: (.*)", last)[0]) > 0.7
    assert run(3) == text
