"""Files and updates that are rejected: the right code and reason, a message that helps, and nothing changed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from calls import MODEL, TIMEOUT, Person, fails_with, model_file, new_id, update_spec
from fedround.v1 import model_pb2, round_pb2, training_pb2
from fedround.v1.training_pb2 import CreateTrainingRequest, TrainingSpec

FILE = model_file()


def spec(**changed: Any) -> TrainingSpec:
    return TrainingSpec(**{"name": "t", "target_num_updates": 1, **changed})


@pytest.fixture
def nothing_changes(actor: Person) -> Iterator[None]:
    """The actor has no training and no model before, and none afterwards."""
    yield
    assert not actor.trainings.GetTrainings(training_pb2.GetTrainingsRequest()).trainings
    assert not actor.models.GetModels(model_pb2.GetModelsRequest()).models


def send(actor: Person, *messages: CreateTrainingRequest) -> None:
    actor.trainings.CreateTraining(iter(messages), timeout=TIMEOUT)


@pytest.mark.usefixtures("nothing_changes")
class TestCreateTraining:
    def test_no_file(self, actor: Person) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "chunk: no file was sent") as error:
            send(actor, CreateTrainingRequest(spec=spec()))
        assert list(error.details.fields) == ["chunk"]

    def test_an_undeclared_stream_that_ends_at_any_byte(self, actor: Person) -> None:
        for cut in range(1, len(FILE), 17):
            with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE", f"ended after {cut} ", "send it again"):
                send(actor, CreateTrainingRequest(spec=spec(), chunk=FILE[:cut]))

    def test_an_undeclared_file_that_is_too_large(self, actor: Person) -> None:
        large = save({"w": np.zeros(1_000_000, np.float32)})
        with fails_with("RESOURCE_EXHAUSTED", "MODEL_TOO_LARGE", f"has {len(large)} bytes, the server takes 3000000"):
            send(actor, CreateTrainingRequest(spec=spec(), chunk=large[: 1 << 20]))

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"target_num_updates": 0}, "spec.target_num_updates"),
            ({"target_num_updates": 1_000_001}, "spec.target_num_updates"),
            ({"name": "n" * 201}, "spec.name"),
            ({"metric_names": ["a", "a"]}, "spec.metric_names"),
            ({"metric_names": [""]}, "spec.metric_names"),
            ({"client_ids": ["me"]}, "spec.client_ids"),
            ({"model_sha256": "abc"}, "spec.model_sha256"),
            ({"request_id": "1"}, "spec.request_id"),
            ({"model_id": "x"}, "spec.model_id"),
            ({"max_num_examples": 2**31 + 1}, "spec.max_num_examples"),
            ({"max_update_norm": -0.5}, "spec.max_update_norm"),
            ({"max_update_norm": float("inf")}, "spec.max_update_norm"),
            ({"max_update_norm": float("nan")}, "spec.max_update_norm"),
            ({"update_precision": 9}, "spec.update_precision"),
            ({"update_precision": 2, "aggregation": {"fed_dc": {}}}, "spec.update_precision"),
            ({"evaluation": 9}, "spec.evaluation"),
            ({"round_policy": {"deadline": {"seconds": -1}}}, "spec.round_policy.deadline"),
            ({"round_policy": {"deadline": {}}}, "spec.round_policy.deadline"),
            ({"round_policy": {"late_updates": 7}}, "spec.round_policy.late_updates"),
            ({"round_policy": {"on_missed": 7}}, "spec.round_policy.on_missed"),
            ({"round_policy": {"on_missed": 2}}, "spec.round_policy.on_missed"),
            ({"round_policy": {"deadline": {"seconds": 1}, "max_retries": 1}}, "spec.round_policy.max_retries"),
            (
                {"round_policy": {"deadline": {"seconds": 1}, "on_missed": 1, "max_retries": 1}},
                "spec.round_policy.max_retries",
            ),
            (
                {"round_policy": {"deadline": {"seconds": 1}, "on_missed": 2, "max_retries": 1001}},
                "spec.round_policy.max_retries",
            ),
            ({"aggregation": {"fed_prox": {"mu": -1}}}, "spec.aggregation.fed_prox.mu"),
            ({"aggregation": {"fed_prox": {"mu": float("nan")}}}, "spec.aggregation.fed_prox.mu"),
            ({"uncertainty": {"swag": {"samples": 1001}}}, "spec.uncertainty.swag.samples"),
            ({"uncertainty": {"swag": {"rank": 21}}}, "spec.uncertainty.swag.rank"),
            (
                {"aggregation": {"fed_dc": {"daisy_period": 2, "aggregation_period": 5}}},
                "spec.aggregation.fed_dc.aggregation_period",
            ),
        ],
    )
    def test_a_field_out_of_range(self, actor: Person, changed: dict[str, Any], field: str) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field) as error:
            send(actor, CreateTrainingRequest(spec=spec(**changed), chunk=FILE))
        assert list(error.details.fields) == [field]

    def test_unknown_clients_are_all_named(self, actor: Person, clients: list[Person]) -> None:
        unknown = [new_id(), new_id()]
        with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", *unknown) as error:
            send(actor, CreateTrainingRequest(spec=spec(client_ids=[clients[0].user_id, *unknown]), chunk=FILE))
        assert clients[0].user_id not in error.details.message

    def test_an_unknown_or_foreign_model(self, actor: Person, person: Callable[..., Person]) -> None:
        foreign = person("ACTOR").create().model_id
        for model_id in (new_id(), foreign):
            with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", model_id) as error:
                send(actor, CreateTrainingRequest(spec=spec(model_id=model_id)))
            assert "ResourceInfo" in error.details.details

    def test_a_stored_model_and_a_file(self, actor: Person) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "model_id"):
            send(actor, CreateTrainingRequest(spec=spec(model_id=new_id()), chunk=FILE))


@pytest.fixture
def running(actor: Person, clients: list[Person]) -> training_pb2.Training:
    """A started training with two of the three clients."""
    made = actor.create(client_ids=[client.user_id for client in clients[:2]], max_num_examples=1000)
    return actor.start(made.training_id)


class TestSubmitUpdate:
    @pytest.fixture(autouse=True)
    def nothing_changes(self, actor: Person, running: training_pb2.Training) -> Iterator[None]:
        before = actor.get(running.training_id)
        yield
        assert actor.get(running.training_id) == before

    @pytest.mark.parametrize("num_examples", [-1, 1001, 2**40])
    def test_num_examples_out_of_bounds(self, clients: list[Person], running: Any, num_examples: int) -> None:
        with fails_with("INVALID_ARGUMENT", "NUM_EXAMPLES", str(num_examples)) as error:
            clients[0].submit(running.training_id, FILE, num_examples=num_examples)
        assert list(error.details.fields) == ["num_examples"]

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (model_file(weight=np.zeros((3, 2), np.float32)), ["weight", "F32[3, 2]", "F32[2, 3]"]),
            (model_file(weight=np.zeros((2, 3), np.float64)), ["weight", "F64"]),
            (model_file(weight=np.zeros((1,), np.float32)), ["weight"]),
        ],
    )
    def test_other_shapes_and_dtypes(self, clients: list[Person], running: Any, data: bytes, words: list[str]) -> None:
        with fails_with("INVALID_ARGUMENT", "UPDATE_MISMATCH", *words):
            clients[0].submit(running.training_id, data)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (model_file(extra=np.zeros(1)), ["does not ask for: 'extra'"]),
            (save({"weight": MODEL["weight"]}), ["lacks", "'bias', 'count'"]),
            (
                save({f"module.{name}": tensor for name, tensor in MODEL.items()}),
                ["lacks", "and it has", "'module.bias'", "remove it with fedround_client.strip_prefix"],
            ),
        ],
    )
    def test_other_names(self, clients: list[Person], running: Any, data: bytes, words: list[str]) -> None:
        with fails_with("INVALID_ARGUMENT", "TENSORS_MISMATCH", *words):
            clients[0].submit(running.training_id, data)

    def test_not_finite(self, clients: list[Person], running: Any) -> None:
        for value in (np.nan, np.inf):
            with fails_with("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", "bias"):
                clients[0].submit(running.training_id, model_file(bias=np.array([0, value, 0])))

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"sha256": ""}, "spec.sha256"),
            ({"size_bytes": 0}, "spec.size_bytes"),
            ({"training_id": "x"}, "spec.training_id"),
        ],
    )
    def test_a_field_missing_or_malformed(
        self, clients: list[Person], running: Any, changed: dict[str, Any], field: str
    ) -> None:
        wanted = update_spec(**{"training_id": running.training_id, "data": FILE, **changed})
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field):
            clients[0].rounds.SubmitUpdate(iter([round_pb2.SubmitUpdateRequest(spec=wanted)]), timeout=TIMEOUT)

    def test_another_round(self, clients: list[Person], running: Any) -> None:
        with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "the current round is 0") as error:
            clients[0].submit(running.training_id, FILE, 1)
        assert "PreconditionFailure" in error.details.details

    def test_a_user_without_a_part(self, clients: list[Person], running: Any) -> None:
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND", running.training_id):
            clients[2].submit(running.training_id, FILE)

    def test_metrics_in_a_training_round(self, clients: list[Person], running: Any) -> None:
        report = round_pb2.SubmitMetricsRequest(training_id=running.training_id, round=0, num_examples=1)
        with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "SubmitUpdate"):
            clients[0].rounds.SubmitMetrics(report)


def test_a_user_outside_of_the_cohort(actor: Person, clients: list[Person], running: Any) -> None:
    request = training_pb2.RegisterClientsRequest(training_id=running.training_id, client_ids=[clients[2].user_id])
    actor.trainings.RegisterClients(request)
    with fails_with("PERMISSION_DENIED", "NOT_IN_COHORT", "round_started"):
        clients[2].submit(running.training_id, FILE)
    assert actor.get(running.training_id).updates_arrived == 0


def test_double_updates(actor: Person, clients: list[Person], running: Any) -> None:
    receipt = clients[0].submit(running.training_id, FILE)
    assert clients[0].submit(running.training_id, FILE) == receipt
    with fails_with("ALREADY_EXISTS", "UPDATE_EXISTS"):
        clients[0].submit(running.training_id, model_file(1))
    assert actor.get(running.training_id).updates_arrived == 1


def test_a_late_update(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[client.user_id for client in clients], round_policy={"min_updates": 1})
    actor.start(made.training_id)
    events = actor.subscribe(made.training_id)
    receipt = clients[0].submit(made.training_id, FILE)
    assert list(events)[-1].HasField("training_finished")
    before = actor.get(made.training_id)
    with fails_with("FAILED_PRECONDITION", "ROUND_NOT_OPEN", "the round is DONE"):
        clients[1].submit(made.training_id, FILE)
    assert clients[0].submit(made.training_id, FILE) == receipt
    assert actor.get(made.training_id) == before
