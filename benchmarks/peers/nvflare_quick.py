"""NVFlare, whose clients ask for tasks ten times a second; by default that is most of a round."""

from peers import nvflare
from peers.common import Workload

PERIOD = 0.1


def run(workload: Workload) -> None:
    """Runs one training."""
    nvflare.run(workload, PERIOD)
