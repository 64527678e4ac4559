"""How a relay names what it makes at its own server, and what it reads of a sum."""

import json
from pathlib import Path

import pytest

from fedround.v1.event_pb2 import RoundStarted
from fedround.v1.training_pb2 import TrainingSpec
from fedround_client.relay_round import RelayOptions, RelayRound
from fedround_client.relay_trainings import _read_counts

pytestmark = pytest.mark.timeout(30)
TRAINING = "11111111-1111-4111-8111-111111111111"


def round_of(number: int) -> RelayRound:
    return RelayRound(TRAINING, TrainingSpec(), RoundStarted(round=number), None, lambda: False)  # type: ignore[arg-type]


def test_the_request_of_a_round_is_always_the_same() -> None:
    # As an earlier version of the SDK has made it: a relay that is updated in a round finds its training.
    assert round_of(3).request_id(0) == "bf806d0f-ec61-573e-b6dd-34132113bcf6"
    ids = {round_of(number).request_id(attempt) for number in range(3) for attempt in range(3)}
    assert len(ids) == 9
    assert round_of(3).name == f"relay of {TRAINING}, round 4"


@pytest.mark.parametrize(("field", "value"), [("min_updates", 0), ("margin", -1.0)])
def test_an_option_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        RelayOptions(**{field: value})  # type: ignore[arg-type]


def test_counts_are_read_from_the_metadata(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"num_examples": str(2**53), "num_updates": "7"}}).encode()
    path = tmp_path / "sum.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert _read_counts(path) == {"num_examples": 2**53, "num_updates": 7}
