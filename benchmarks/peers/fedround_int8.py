"""fedround with clients of the SDK, which send differences of a byte a number."""

from peers import fedround
from peers.common import Workload
from peers.fedround_sdk import take_part


def run(workload: Workload) -> None:
    """Runs one training."""
    fedround.run(workload, take_part, update_precision="INT8")
