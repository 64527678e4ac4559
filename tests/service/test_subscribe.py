"""Events over a subscription: a snapshot, then the log, behind whatever was seen already."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, kinds, model_file, new_id
from fedround.v1 import event_pb2, training_pb2, user_pb2
from servers import Server


def ids(people: list[Person]) -> list[str]:
    return [one.user_id for one in people]


@pytest.fixture
def two(clients: list[Person]) -> list[Person]:
    return clients[:2]


@pytest.fixture
def training(actor: Person, two: list[Person]) -> training_pb2.Training:
    return actor.create(client_ids=ids(two), target_num_updates=2)


def run_round(training_id: str, people: list[Person], number: int) -> None:
    for one in people:
        one.submit(training_id, model_file(number + 1), number)


def test_a_training_from_before_its_start_to_its_end(actor: Person, two: list[Person], training: Any) -> None:
    steering, taking_part = actor.subscribe(training.training_id), two[0].subscribe(training.training_id)
    actor.start(training.training_id)
    assert kinds(taking_part.next(2)) == ["training_started", "round_started"]
    for number in range(2):
        run_round(training.training_id, two, number)
        assert taking_part.next(1)[0].round_closed.round == number
        if number == 0:
            started = taking_part.next(1)[0].round_started
            assert (started.round, started.model.version) == (1, 1)
    assert kinds(list(taking_part)) == ["training_finished"]

    events = list(steering)
    one_round = ["round_started", "update_accepted", "update_accepted", "round_closed"]
    assert kinds(events) == ["training_started", *one_round, *one_round, "training_finished"]
    assert [event.sequence for event in events] == list(range(1, 11))
    assert all(event.training_id == training.training_id and event.HasField("create_time") for event in events)
    accepted = [event.update_accepted for event in events if event.HasField("update_accepted")]
    assert [(one.updates_arrived, one.updates_expected) for one in accepted] == [(1, 2), (2, 2)] * 2
    assert {one.participant_id for one in accepted} == set(ids(two))


def test_round_started_carries_what_a_participant_needs(actor: Person, two: list[Person]) -> None:
    made = actor.create(
        client_ids=ids(two),
        aggregation={"fed_prox": {"mu": 0.25}},
        metric_names=["accuracy"],
        round_policy={"deadline": {"seconds": 3600}},
    )
    actor.start(made.training_id)
    event = next(two[0].subscribe(made.training_id))
    started = event.round_started
    assert (started.round, started.kind) == (0, event_pb2.ROUND_KIND_TRAIN)
    assert (started.model.model_id, started.model.version) == (made.model_id, 0)
    assert (len(started.model.sha256), started.model.size_bytes) == (64, len(model_file()))
    assert started.aggregation.fed_prox.mu == 0.25
    assert list(started.metric_names) == ["accuracy"]
    assert started.deadline.ToMilliseconds() == event.create_time.ToMilliseconds() + 3_600_000


def test_without_a_cursor_it_starts_at_the_current_round(actor: Person, two: list[Person], training: Any) -> None:
    actor.start(training.training_id)
    stream = actor.subscribe(training.training_id)
    run_round(training.training_id, two, 0)
    assert kinds(stream.next(5))[-1] == "round_started"
    first = next(two[0].subscribe(training.training_id))
    assert first.round_started.round == 1


def test_it_resumes_behind_a_cursor(actor: Person, two: list[Person], training: Any) -> None:
    actor.start(training.training_id)
    run_round(training.training_id, two, 0)
    run_round_one = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0})
    run_round_one.next(6)
    run_round(training.training_id, two, 1)
    everything = list(actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 0}))
    for cursor in range(len(everything) + 1):
        rest = actor.subscribe(training.training_id, resume_after_sequence={training.training_id: cursor})
        assert list(rest) == everything[cursor:]


def test_a_cursor_that_the_log_does_not_reach(actor: Person, training: Any) -> None:
    with fails_with("OUT_OF_RANGE", "CURSOR_EXPIRED", training.training_id):
        next(actor.subscribe(training.training_id, resume_after_sequence={training.training_id: 1}))


@pytest.mark.parametrize("sequence", [2**64 - 1, 2**63])
def test_a_cursor_that_no_log_reaches(actor: Person, training: Any, sequence: int) -> None:
    with pytest.raises(grpc.RpcError) as error:
        next(actor.subscribe(training.training_id, resume_after_sequence={training.training_id: sequence}))
    assert error.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)


def test_a_cursor_of_another_training(actor: Person, training: Any) -> None:
    other = actor.create().training_id
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "resume_after_sequence", other):
        next(actor.subscribe(training.training_id, resume_after_sequence={other: 1}))


def test_a_training_that_is_not_mine(person: Any, training: Any) -> None:
    for training_id in (training.training_id, new_id()):
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            next(person("CLIENT").subscribe(training_id))


def test_after_the_finish_it_reports_the_end_and_ends(actor: Person, two: list[Person]) -> None:
    made = actor.create(client_ids=ids(two))
    actor.start(made.training_id)
    stream = actor.subscribe(made.training_id)
    run_round(made.training_id, two, 0)
    assert kinds(list(stream))[-1] == "training_finished"
    finished = list(two[0].subscribe(made.training_id))
    assert kinds(finished) == ["training_finished"]
    assert (finished[0].training_finished.model_id, finished[0].training_finished.model_version) == (made.model_id, 1)


def test_all_trainings_also_later_ones(actor: Person, clients: list[Person]) -> None:
    stream = clients[0].subscribe()
    made = [actor.create(client_ids=ids(clients[:1])).training_id for _ in range(2)]
    late = actor.create(client_ids=ids(clients[1:2])).training_id
    for training_id in made:
        actor.start(training_id)
        seen = stream.next(2)
        assert kinds(seen) == ["training_started", "round_started"]
        assert {event.training_id for event in seen} == {training_id}
    actor.start(late)
    actor.trainings.RegisterClients(
        training_pb2.RegisterClientsRequest(training_id=late, client_ids=[clients[0].user_id])
    )
    joined = stream.next(1)[0]
    assert (joined.training_id, joined.WhichOneof("payload")) == (late, "training_started")
    run_round(late, clients[1:2], 0)
    assert kinds(stream.next(2)) == ["round_closed", "training_finished"]


def test_who_joins_a_running_training_starts_with_the_next_round(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=ids(clients[:1]), target_num_updates=2)
    actor.start(made.training_id)
    actor.trainings.RegisterClients(
        training_pb2.RegisterClientsRequest(training_id=made.training_id, client_ids=[clients[1].user_id])
    )
    stream = clients[1].subscribe(made.training_id)
    assert kinds(stream.next(1)) == ["training_started"]
    run_round(made.training_id, clients[:1], 0)
    assert kinds(stream.next(2)) == ["round_closed", "round_started"]
    run_round(made.training_id, clients[:2], 1)
    assert kinds(list(stream))[-1] == "training_finished"


def test_a_removed_participant_is_notified_and_receives_no_more(
    actor: Person, two: list[Person], training: Any
) -> None:
    actor.start(training.training_id)
    stays, leaves = two[0].subscribe(training.training_id), two[1].subscribe(training.training_id)
    stays.next(1), leaves.next(1)
    actor.trainings.RemoveClients(
        training_pb2.RemoveClientsRequest(training_id=training.training_id, client_ids=[two[1].user_id])
    )
    assert [event.client_removed.client_id for event in leaves] == [two[1].user_id]
    run_round(training.training_id, two[:1], 0)
    assert kinds(stays.next(1)) == ["round_closed"]
    assert kinds(list(two[1].subscribe(training.training_id))) == ["client_removed"]


@pytest.mark.parametrize("all_trainings", [True, False])
def test_a_removed_training_is_reported(actor: Person, two: list[Person], training: Any, all_trainings: bool) -> None:
    actor.start(training.training_id)
    stream = two[0].subscribe("" if all_trainings else training.training_id)
    stream.next(1)
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=training.training_id, force=True))
    assert kinds(stream.next(1)) == ["training_removed"]
    stream.cancel()


def test_a_removed_user_hears_no_more(admin: Person, two: list[Person], training: Any) -> None:
    stream = two[0].subscribe(training.training_id)
    admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=two[0].user_id))
    with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
        list(stream)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, whose subscriptions are not silent for long."""
    with Server(tmp_path / "data", options=("--heartbeat-seconds", "0.2")) as running:
        yield running


def test_silence_has_heartbeats(own: Server) -> None:
    with grpc.insecure_channel(own.address) as channel:
        person = Person(channel, own.admin_token)
        made = person.create(client_ids=[person.users.GetMyself(user_pb2.GetMyselfRequest()).user.user_id])
        person.start(made.training_id)
        stream = person.subscribe(made.training_id, resume_after_sequence={made.training_id: 0}).stream
        started, opened, beat, again = itertools.islice(stream, 4)
        assert kinds([started, opened, beat, again]) == ["training_started", "round_started", "heartbeat", "heartbeat"]
        assert (beat.training_id, beat.sequence, again.sequence) == (made.training_id, 2, 2)
        stream.cancel()


def test_a_draining_server_sends_going_away(own: Server) -> None:
    with grpc.insecure_channel(own.address) as channel:
        person = Person(channel, own.admin_token)
        made = person.create()
        one, every = person.subscribe(made.training_id), person.subscribe()
        assert own.stop() == 0
        assert kinds([next(one), next(every)]) == ["going_away", "going_away"]
