"""The seven RPCs: what they answer, whom they reject, and that an error changes nothing."""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from calls import MODEL, Person, fails_with, kinds, model_file, new_id, read_error
from fedround.v1 import model_pb2, training_pb2, user_pb2
from fedround.v1.training_pb2 import (
    GetTrainingsRequest,
    RegisterClientsRequest,
    RemoveClientsRequest,
    RemoveTrainingRequest,
    StartTrainingRequest,
)


def ids(people: list[Person]) -> list[str]:
    return [one.user_id for one in people]


def token(*position: str | int) -> str:
    """A page token that was never issued."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


@pytest.fixture
def training(actor: Person, clients: list[Person]) -> training_pb2.Training:
    return actor.create(client_ids=ids(clients))


def test_a_created_training_says_what_it_will_do(actor: Person, clients: list[Person]) -> None:
    made = actor.create(name="digits", description="words", client_ids=ids(clients), metric_names=["accuracy"])
    assert (made.state, made.round, made.model_version) == (training_pb2.TRAINING_STATE_INITIAL, 0, 0)
    assert (made.updates_arrived, made.updates_expected) == (0, 0)
    assert made.actor_id == actor.user_id
    assert list(made.participant_ids) == sorted(ids(clients))
    assert made.num_participants == 3
    assert made.spec.aggregation.WhichOneof("algorithm") == "fed_avg"
    assert made.spec.uncertainty.WhichOneof("method") == "none"
    assert made.spec.evaluation == training_pb2.EVALUATION_EVERY_ROUND
    assert made.spec.round_policy.late_updates == training_pb2.LATE_UPDATES_REJECT
    assert made.spec.max_num_examples == 2**31
    assert (made.spec.name, made.spec.description, list(made.spec.metric_names)) == ("digits", "words", ["accuracy"])
    assert made.HasField("create_time")
    assert not made.HasField("start_time")
    assert actor.get(made.training_id) == made


def test_options_are_echoed(actor: Person) -> None:
    policy = training_pb2.RoundPolicy(min_updates=2, deadline={"seconds": 90, "nanos": 500_000_000})
    made = actor.create(aggregation={"fed_prox": {"mu": 0.1}}, round_policy=policy, evaluation="EVALUATION_NEVER")
    assert made.spec.aggregation.fed_prox.mu == 0.1
    assert (made.spec.round_policy.min_updates, made.spec.round_policy.deadline) == (2, policy.deadline)
    assert made.spec.evaluation == training_pb2.EVALUATION_NEVER


def test_a_repeated_create_answers_the_first_training(actor: Person) -> None:
    request_id = new_id()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: actor.create(request_id=request_id), range(8)))
    assert len({one.training_id for one in made}) == 1
    assert len(actor.trainings.GetTrainings(GetTrainingsRequest()).trainings) == 1
    assert len(actor.models.GetModels(model_pb2.GetModelsRequest()).models) == 1


def test_a_used_model_is_copied_and_stays_as_it_was(actor: Person, clients: list[Person]) -> None:
    first = actor.create(client_ids=ids(clients[:1]))
    actor.start(first.training_id)
    events = actor.subscribe(first.training_id)
    clients[0].submit(first.training_id, model_file(1))
    assert kinds(list(events))[-1] == "training_finished"
    original = actor.models.GetModel(model_pb2.GetModelRequest(model_id=first.model_id)).model
    second = actor.create(b"", model_id=first.model_id)
    copy = actor.models.GetModel(model_pb2.GetModelRequest(model_id=second.model_id)).model
    assert second.model_id != first.model_id
    assert (copy.version, copy.source_model_id, copy.sha256) == (0, first.model_id, original.sha256)
    assert (original.version, original.source_model_id) == (1, "")


def test_lists_by_role_and_page(actor: Person, clients: list[Person]) -> None:
    made = [actor.create(client_ids=ids(clients[:1])).training_id for _ in range(5)]
    found, token = [], ""
    while True:
        page = actor.trainings.GetTrainings(GetTrainingsRequest(page_size=2, page_token=token))
        found += [one.training_id for one in page.trainings]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    assert not page.trainings[0].participant_ids
    assert not page.trainings[0].spec.client_ids
    assert page.trainings[0].num_participants == 1
    mine = clients[0].trainings.GetTrainings(GetTrainingsRequest(role="TRAINING_ROLE_CLIENT", page_size=5000))
    assert [one.training_id for one in mine.trainings] == made[::-1]
    assert not mine.next_page_token
    assert not clients[0].trainings.GetTrainings(GetTrainingsRequest()).trainings
    assert not clients[1].trainings.GetTrainings(GetTrainingsRequest(role="TRAINING_ROLE_CLIENT")).trainings


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GetTrainingsRequest(page_size=-1), "page_size"),
        (GetTrainingsRequest(page_token="nonsense"), "page_token"),
        (GetTrainingsRequest(page_token="WzEsIDJd"), "page_token"),
        (GetTrainingsRequest(page_token="W1tbW1tb" * 1000), "page_token"),
        (GetTrainingsRequest(page_token=token(1, "x")), "page_token"),
        (GetTrainingsRequest(role=9), "role"),
    ],
)
def test_a_listing_that_makes_no_sense(actor: Person, request_: Any, field: str) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", field) as error:
        actor.trainings.GetTrainings(request_)
    assert list(error.details.fields) == [field]


def test_a_participant_sees_only_itself(clients: list[Person], training: Any) -> None:
    seen = clients[0].get(training.training_id)
    assert list(seen.participant_ids) == [clients[0].user_id]
    assert not seen.spec.client_ids
    assert seen.num_participants == 3
    text = str(seen)
    assert not any(other.user_id in text for other in clients[1:])


def test_what_only_the_actor_may(actor: Person, clients: list[Person], training: Any) -> None:
    before = actor.get(training.training_id)
    service, training_id = clients[0].trainings, training.training_id
    for call, request in [
        (service.StartTraining, StartTrainingRequest(training_id=training_id)),
        (service.RegisterClients, RegisterClientsRequest(training_id=training_id, client_ids=ids(clients))),
        (service.RemoveClients, RemoveClientsRequest(training_id=training_id, client_ids=ids(clients))),
        (service.RemoveTraining, RemoveTrainingRequest(training_id=training_id, force=True)),
    ]:
        with fails_with("PERMISSION_DENIED", "NOT_ACTOR", "actor"):
            call(request)
    assert actor.get(training_id) == before


class TestRegisterAndRemove:
    def test_ids_are_a_set(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create()
        again = [*ids(clients), *ids(clients)]
        request = RegisterClientsRequest(training_id=made.training_id, client_ids=again)
        for _ in range(2):
            after = actor.trainings.RegisterClients(request).training
            assert list(after.participant_ids) == sorted(ids(clients))

    def test_unknown_ids_are_all_named_and_nothing_changes(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients[:1]))
        unknown = [new_id(), new_id()]
        mixed = [clients[1].user_id, *unknown]
        with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", *unknown):
            actor.trainings.RegisterClients(RegisterClientsRequest(training_id=made.training_id, client_ids=mixed))
        # More of them than an answer has room for.
        many = sorted(new_id() for _ in range(10_000))
        with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", many[0], "and 9980 more"):
            actor.trainings.RegisterClients(RegisterClientsRequest(training_id=made.training_id, client_ids=many))
        mixed = [clients[0].user_id, clients[1].user_id]
        with fails_with("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", clients[1].user_id):
            actor.trainings.RemoveClients(RemoveClientsRequest(training_id=made.training_id, client_ids=mixed))
        for call, kind in [
            (actor.trainings.RegisterClients, RegisterClientsRequest),
            (actor.trainings.RemoveClients, RemoveClientsRequest),
        ]:
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "client_ids"):
                call(kind(training_id=made.training_id))
            with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "client_ids", "UUID"):
                call(kind(training_id=made.training_id, client_ids=[clients[0].user_id, "me"]))
        assert actor.get(made.training_id) == made

    def test_a_participant_may_remove_itself(self, actor: Person, clients: list[Person], training: Any) -> None:
        request = RemoveClientsRequest(training_id=training.training_id, client_ids=[clients[0].user_id])
        answer = clients[0].trainings.RemoveClients(request)
        assert clients[0].trainings.RemoveClients(request) == answer
        assert list(actor.trainings.RemoveClients(request).training.participant_ids) == sorted(ids(clients[1:]))
        assert clients[0].user_id not in actor.get(training.training_id).participant_ids
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            clients[0].get(training.training_id)

    def test_the_last_one_stays_in_a_running_training(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients[:2]))
        actor.start(made.training_id)
        before = actor.get(made.training_id)
        with fails_with("FAILED_PRECONDITION", "LAST_PARTICIPANT"):
            actor.trainings.RemoveClients(
                RemoveClientsRequest(training_id=made.training_id, client_ids=ids(clients[:2]))
            )
        assert actor.get(made.training_id) == before

    def test_removing_the_only_missing_participant_closes_the_round(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients[:2]))
        actor.start(made.training_id)
        events = actor.subscribe(made.training_id)
        clients[0].submit(made.training_id, model_file(1))
        actor.trainings.RemoveClients(
            RemoveClientsRequest(training_id=made.training_id, client_ids=[clients[1].user_id])
        )
        seen = list(events)
        assert kinds(seen)[-3:] == ["client_removed", "round_closed", "training_finished"]
        assert seen[-2].round_closed.num_updates == 1

    def test_the_update_of_a_removed_participant_does_not_count(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients))
        actor.start(made.training_id)
        clients[0].submit(made.training_id, model_file(1))
        after = actor.trainings.RemoveClients(
            RemoveClientsRequest(training_id=made.training_id, client_ids=[clients[0].user_id])
        ).training
        assert (after.updates_arrived, after.updates_expected) == (0, 2)

    def test_an_ended_training_is_closed(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create(client_ids=ids(clients[:1]))
        actor.start(made.training_id)
        events = actor.subscribe(made.training_id)
        clients[0].submit(made.training_id, model_file(1))
        assert kinds(list(events))[-1] == "training_finished"
        before = actor.get(made.training_id)
        for call, kind, words in [
            (actor.trainings.RegisterClients, RegisterClientsRequest, "register clients in a new one"),
            (actor.trainings.RemoveClients, RemoveClientsRequest, "there is nothing to leave"),
        ]:
            with fails_with("FAILED_PRECONDITION", "TRAINING_ENDED", f"{made.training_id} is COMPLETED", words):
                call(kind(training_id=made.training_id, client_ids=ids(clients[:1])))
        assert actor.get(made.training_id) == before

    def test_the_actor_may_take_part(self, actor: Person) -> None:
        made = actor.create(client_ids=[actor.user_id])
        actor.start(made.training_id)
        assert actor.submit(made.training_id, model_file(1)).round == 0


class TestStart:
    def test_of_20_starts_at_once_one_wins(self, actor: Person, training: Any) -> None:
        def start(_: int) -> str:
            try:
                actor.start(training.training_id)
            except grpc.RpcError as error:
                return read_error(error).reason
            return "won"

        with ThreadPoolExecutor(20) as pool:
            ends = sorted(pool.map(start, range(20)))
        assert ends == ["TRAINING_NOT_INITIAL"] * 19 + ["won"]
        # The end of the training is the end of its log.
        actor.trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id, force=True))
        log = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0})
        assert kinds(list(log)) == ["training_started", "round_started", "training_removed"]

    def test_a_repeated_start_answers_as_the_first(self, actor: Person, training: Any) -> None:
        request = StartTrainingRequest(training_id=training.training_id, request_id=new_id())
        first = actor.trainings.StartTraining(request).training
        assert actor.trainings.StartTraining(request).training == first
        assert first.state == training_pb2.TRAINING_STATE_ONGOING
        assert (first.updates_arrived, first.updates_expected) == (0, 3)

    def test_without_participants(self, actor: Person, clients: list[Person]) -> None:
        made = actor.create()
        with fails_with("FAILED_PRECONDITION", "NO_PARTICIPANTS", "register"):
            actor.start(made.training_id)
        few = actor.create(client_ids=ids(clients[:1]), round_policy={"min_updates": 2})
        with fails_with("FAILED_PRECONDITION", "NO_PARTICIPANTS", "2"):
            actor.start(few.training_id)
        assert actor.get(made.training_id) == made


class TestRemoveTraining:
    def test_a_running_one_wants_force(self, actor: Person, clients: list[Person], training: Any) -> None:
        actor.start(training.training_id)
        before = actor.get(training.training_id)
        with fails_with("FAILED_PRECONDITION", "TRAINING_RUNNING", "force"):
            actor.trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id))
        assert actor.get(training.training_id) == before
        actor.trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id, force=True))
        # Again, as after a lost answer.
        actor.trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id))
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            clients[0].trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id))
        for one in (actor, clients[0]):
            with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
                one.get(training.training_id)
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            clients[0].submit(training.training_id, model_file(1))
        kept = actor.models.GetModel(model_pb2.GetModelRequest(model_id=training.model_id)).model
        assert kept.version == 0

    def test_models_in_use_stay(self, actor: Person, training: Any) -> None:
        with fails_with("FAILED_PRECONDITION", "MODEL_IN_USE", training.training_id):
            actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=training.model_id))
        actor.trainings.RemoveTraining(RemoveTrainingRequest(training_id=training.training_id))
        actor.models.RemoveModel(model_pb2.RemoveModelRequest(model_id=training.model_id))
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
            actor.models.GetModel(model_pb2.GetModelRequest(model_id=training.model_id))


def test_an_actor_has_a_quota(person: Callable[..., Person]) -> None:
    actor = person("ACTOR")
    model = actor.create()
    for _ in range(29):
        actor.create(b"", model_id=model.model_id)
    with fails_with("RESOURCE_EXHAUSTED", "QUOTA", "30") as error:
        actor.create(b"", model_id=model.model_id)
    assert error.details.metadata == {"limit": "max_open_trainings_per_user"}
    assert "QuotaFailure" in error.details.details
    assert len(actor.trainings.GetTrainings(GetTrainingsRequest()).trainings) == 30


def test_the_model_of_the_tests_is_what_was_stored(actor: Person, training: Any) -> None:
    model = actor.models.GetModel(model_pb2.GetModelRequest(model_id=training.model_id)).model
    assert {one.name: tuple(one.shape) for one in model.tensors} == {name: t.shape for name, t in MODEL.items()}
    assert model.num_tensors == 3
    assert actor.users.GetMyself(user_pb2.GetMyselfRequest()).user.role == user_pb2.ROLE_ACTOR
