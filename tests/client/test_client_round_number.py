"""How people count rounds, and how many a training has: the server itself says when a training is complete."""

import pytest

from client.scripted import MODEL
from fedround.v1.aggregation_pb2 import Aggregation, FedDc, Swag, Uncertainty
from fedround.v1.training_pb2 import EVALUATION_EVERY_ROUND, EVALUATION_FINAL_ONLY, EVALUATION_NEVER, TrainingSpec
from fedround_client.round_number import planned_rounds, round_text
from fedround_server.domain.rounds import next_kind
from fedround_server.domain.rounds.kind import Sequel
from fedround_server.services.training_spec import read

TARGET = 7


@pytest.mark.parametrize(
    "spec",
    [
        TrainingSpec(),
        TrainingSpec(metric_names=["a"], evaluation=EVALUATION_EVERY_ROUND),
        TrainingSpec(metric_names=["a"], evaluation=EVALUATION_FINAL_ONLY),
        TrainingSpec(metric_names=["a"], evaluation=EVALUATION_NEVER),
        TrainingSpec(uncertainty=Uncertainty(swag=Swag())),
        TrainingSpec(uncertainty=Uncertainty(swag=Swag(every=2))),
        TrainingSpec(
            uncertainty=Uncertainty(swag=Swag(every=7)), metric_names=["a"], evaluation=EVALUATION_EVERY_ROUND
        ),
        TrainingSpec(uncertainty=Uncertainty(swag=Swag(every=9))),
    ],
)
def test_as_many_rounds_are_planned_as_the_server_opens(spec):
    spec.name, spec.target_num_updates, spec.model_id = "n", TARGET, MODEL
    stored, rounds, version = read(spec), 0, 0
    kind = next_kind(stored, None, version)
    while kind is not None:
        rounds += 1
        version += kind.sequel is Sequel.NEXT_VERSION
        kind = next_kind(stored, kind.name, version)
    assert (rounds, version) == (planned_rounds(spec), TARGET)


def test_the_first_round_is_round_1():
    assert (round_text(0), round_text(2, 20)) == ("round 1", "round 3 of 20")


def test_daisy_chaining_has_a_round_for_each_assignment():
    chained = Aggregation(fed_dc=FedDc(daisy_period=2, aggregation_period=6))
    assert planned_rounds(TrainingSpec(target_num_updates=5, aggregation=chained)) == 15
