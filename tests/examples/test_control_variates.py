import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "control_variates.py"


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_control_variates_keep_participants_from_drifting() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(EXAMPLE)]
    text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    distances = dict(re.findall(r"(\w+): the model is (\S+) from the best one", text))
    assert list(distances) == ["FedAvg", "SCAFFOLD", "FedDyn"]
    assert float(distances["SCAFFOLD"]) < 0.01 < 0.5 < float(distances["FedAvg"])
