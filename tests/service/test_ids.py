"""Ids: malformed ones, those of nothing, and those of what others have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from calls import TIMEOUT, Person, fails_with, kinds, model_file, new_id, read_error, update_spec
from fedround.v1 import config_pb2, control_pb2, inference_pb2, model_pb2, round_pb2, training_pb2, user_pb2
from service.uploads import belongings

UUID = "caa9ec9f-fada-4829-ade5-e642e28628c3"
MALFORMED = ["x", "123", "g" * 36, "{" + "1" * 36 + "}", UUID + "0", UUID.replace("-", ""), "1" * 10_000]
INPUTS = {"dtype": "F32", "shape": [1], "data": bytes(4)}
TRAIN, ROUND, MODEL, USER = "TRAINING_NOT_FOUND", "ROUND_NOT_FOUND", "MODEL_NOT_FOUND", "USER_NOT_FOUND"


@dataclass(frozen=True)
class Method:
    """An RPC, the field that takes an id, what else it wants, and what an id of nothing is answered with."""

    stub: str
    name: str
    field: str
    reason: str = ""
    needs: dict[str, Any] = field(default_factory=dict)
    optional: bool = False

    def __call__(self, person: Person, id_: Any) -> Any:
        messages: Any = {
            "users": user_pb2,
            "trainings": training_pb2,
            "control": control_pb2,
            "rounds": round_pb2,
            "models": model_pb2,
            "inference": inference_pb2,
        }[self.stub]
        request = getattr(messages, f"{self.name}Request")(**self.needs, **{self.field: id_})
        answer = getattr(getattr(person, self.stub), self.name)(request, timeout=TIMEOUT)
        return next(answer) if hasattr(answer, "cancel") else answer

    def __str__(self) -> str:
        return f"{self.name}.{self.field}"


ANY_CLIENT = {"client_ids": [new_id()]}
CHANGES = {"config": {"rate": config_pb2.ConfigValue(double_value=0.1)}}
METHODS = [
    Method("users", "GetUser", "user_id", USER),
    Method("users", "RemoveUser", "user_id", USER),
    Method("users", "RotateToken", "user_id", USER, optional=True),
    Method("trainings", "GetTraining", "training_id", TRAIN),
    Method("trainings", "StartTraining", "request_id", needs={"training_id": new_id()}, optional=True),
    Method("trainings", "StartTraining", "training_id", TRAIN),
    Method("trainings", "RegisterClients", "training_id", TRAIN, ANY_CLIENT),
    Method("trainings", "RemoveClients", "training_id", TRAIN, ANY_CLIENT),
    Method("trainings", "RemoveTraining", "training_id", TRAIN, {"force": True}),
    *(Method("control", name, "training_id", TRAIN) for name in ("StopTraining", "PauseTraining", "ResumeTraining")),
    *(
        Method("control", name, "request_id", needs={"training_id": new_id()}, optional=True)
        for name in ("StopTraining", "PauseTraining", "ResumeTraining")
    ),
    Method("control", "UpdateConfig", "training_id", TRAIN, CHANGES),
    Method("control", "UpdateConfig", "request_id", needs={"training_id": new_id(), **CHANGES}, optional=True),
    Method("rounds", "Subscribe", "training_id", TRAIN, optional=True),
    Method("rounds", "CheckIn", "training_id", TRAIN, optional=True),
    Method("rounds", "GetRound", "training_id", TRAIN),
    Method("rounds", "SubmitMetrics", "training_id", TRAIN, {"num_examples": 1}),
    Method("rounds", "DownloadAssignedModel", "training_id", TRAIN),
    Method("rounds", "DownloadControl", "training_id", TRAIN),
    Method("rounds", "GetUpload", "upload_id"),
    Method("models", "GetModel", "model_id", MODEL),
    Method("models", "GetModelVersions", "model_id", MODEL),
    Method("models", "TagModelVersion", "model_id", MODEL, {"tag": "mine"}),
    Method("models", "DownloadModel", "model_id", MODEL),
    Method("models", "RemoveModel", "model_id", MODEL),
    Method("models", "GetMetrics", "model_id", MODEL),
    Method("inference", "Predict", "model_id", MODEL, {"inputs": INPUTS}),
]
OF_OTHERS = [method for method in METHODS if method.reason in (TRAIN, MODEL)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_malformed_ids(admin: Person, method: Method) -> None:
    for id_ in MALFORMED if method.optional else ["", *MALFORMED]:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"{method.field}: ", "a UUID like") as error:
            method(admin, id_)
        assert list(error.details.fields) == [method.field]


def test_malformed_ids_in_lists(admin: Person) -> None:
    for name in ("RegisterClients", "RemoveClients"):
        method = Method("trainings", name, "client_ids", needs={"training_id": new_id()})
        for id_ in MALFORMED[:-1]:
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"client_ids: '{id_}' is not a UUID"):
                method(admin, [new_id(), id_])


@pytest.mark.parametrize("id_", ["", *MALFORMED])
def test_malformed_ids_of_cursors(admin: Person, id_: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "resume_after_sequence: ", "a UUID like"):
        next(admin.subscribe(resume_after_sequence={id_: 1}))


@pytest.mark.parametrize("id_", ["", *MALFORMED])
def test_malformed_ids_of_members_of_an_ensemble(admin: Person, id_: str) -> None:
    ensemble = {"ensemble": {"members": [{"model_id": id_}]}}
    needs = {"inputs": INPUTS, "uncertainty": ensemble}
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "ensemble.members.model_id: ", "a UUID like"):
        Method("inference", "Predict", "model_id", needs=needs)(admin, new_id())


@pytest.mark.parametrize("method", [method for method in METHODS if method.reason], ids=str)
def test_ids_of_nothing(admin: Person, method: Method) -> None:
    unknown = new_id()
    with fails_with("NOT_FOUND", method.reason, f"there is no {method.field[:-3]} {unknown} that you have a part in"):
        method(admin, unknown)


@pytest.fixture
def owned(actor: Person, clients: list[Person]) -> Iterator[training_pb2.Training]:
    """A training that runs; it does not change, and no event is sent in it."""
    made = actor.create(client_ids=[clients[0].user_id])
    running = actor.start(made.training_id)
    before = belongings(actor)
    yield running
    assert belongings(actor) == before
    log = actor.subscribe(made.training_id, resume_after_sequence={made.training_id: 0})
    assert kinds(log.next(2)) == ["training_started", "round_started"]
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=made.training_id, force=True))
    assert kinds(list(log)) == ["training_removed"]


@pytest.mark.parametrize("method", OF_OTHERS, ids=str)
@pytest.mark.parametrize("role", ["ACTOR", "ADMIN"])
def test_ids_of_what_others_have(
    person: Callable[..., Person], owned: training_pb2.Training, method: Method, role: str
) -> None:
    unrelated, unknown = person(role), new_id()
    answers = set()
    for id_ in (unknown, owned.training_id if method.reason == TRAIN else owned.model_id):
        with pytest.raises(grpc.RpcError) as error:
            method(unrelated, id_)
        details = read_error(error.value)
        assert (details.code, details.reason) == (grpc.StatusCode.NOT_FOUND, method.reason)
        assert details.metadata == {"id": id_}
        answers.add(details.message.replace(id_, unknown))
    # They are indistinguishable.
    assert len(answers) == 1


def test_an_update_for_what_others_have(person: Callable[..., Person], owned: training_pb2.Training) -> None:
    unrelated, data = person("ACTOR"), model_file(1)
    for training_id in (new_id(), owned.training_id):
        with fails_with("NOT_FOUND", TRAIN, training_id):
            unrelated.submit(training_id, data)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "spec.training_id"):
            message = round_pb2.SubmitUpdateRequest(spec=update_spec(training_id[:-1], data))
            unrelated.rounds.SubmitUpdate(iter([message]), timeout=TIMEOUT)


def test_ids_may_be_in_upper_case(actor: Person) -> None:
    made = actor.create()
    assert actor.get(made.training_id.upper()) == made


def test_repeated_ids_are_a_set(actor: Person, clients: list[Person]) -> None:
    ids = sorted(client.user_id for client in clients)
    made = actor.create(client_ids=[*ids, *reversed(ids), ids[0].upper()])
    assert list(made.participant_ids) == ids
    assert sorted(made.spec.client_ids) == ids
    request = training_pb2.RemoveClientsRequest(training_id=made.training_id, client_ids=[ids[0], ids[1], ids[0]])
    assert list(actor.trainings.RemoveClients(request).training.participant_ids) == ids[2:]
