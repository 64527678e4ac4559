"""Check-ins over a real port: what is new, when to come back, and who counts as connected."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from calls import Person, fails_with, kinds, model_file, new_id, until
from fedround.v1 import round_pb2, training_pb2
from fedround.v1.training_pb2 import Cohort, RoundPolicy
from servers import Server


def check_in(person: Person, training_id: str = "", **request: Any) -> round_pb2.CheckInResponse:
    return person.rounds.CheckIn(round_pb2.CheckInRequest(training_id=training_id, **request))


def waits(found: round_pb2.CheckInResponse) -> float:
    return found.retry_after.ToTimedelta().total_seconds()


def look(actor: Person, training_id: str) -> round_pb2.Round:
    return actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=training_id)).round


@pytest.mark.parametrize("one", [True, False])
def test_a_participant_gets_each_event_once(actor: Person, clients: list[Person], one: bool) -> None:
    client = clients[0]
    training_id = actor.create(client_ids=[client.user_id], target_num_updates=2).training_id
    asked = training_id if one else ""
    before = check_in(client, asked)
    assert (list(before.events), list(before.resume_after_sequence)) == ([], [training_id])
    assert 5 <= waits(before) <= 15
    assert not before.ended
    actor.start(training_id)
    started = check_in(client, asked, resume_after_sequence=before.resume_after_sequence)
    assert kinds(started.events) == ["training_started", "round_started"]
    assert started.events[1].round_started.model.size_bytes
    again = check_in(client, asked, resume_after_sequence=started.resume_after_sequence)
    assert not again.events
    # Without a cursor it begins at the current round, as a subscription does.
    assert kinds(check_in(client, asked).events) == ["round_started"]
    cursors = started.resume_after_sequence
    seen = []
    for number in range(2):
        client.submit(training_id, model_file(number), number)
        while "round_closed" not in seen[number:] and "training_finished" not in seen:
            found = check_in(client, asked, resume_after_sequence=cursors)
            seen += kinds(found.events)
            cursors = found.resume_after_sequence
    until(lambda: actor.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
    last = check_in(client, asked, resume_after_sequence=cursors)
    seen += kinds(last.events)
    assert seen.count("round_closed") == 2
    assert seen.count("round_started") == 1
    assert seen[-1] == "training_finished"
    if not last.events:
        last = found
    assert last.ended == one
    assert not last.resume_after_sequence


def test_who_has_no_training_waits_longer(clients: list[Person]) -> None:
    found = check_in(clients[0])
    assert 30 <= waits(found) <= 90
    assert not found.ended


def test_wrong_requests(actor: Person, clients: list[Person], person: Callable[..., Person]) -> None:
    client = clients[0]
    training_id = actor.create(client_ids=[client.user_id]).training_id
    with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
        check_in(clients[1], training_id)
    with fails_with("OUT_OF_RANGE", "CURSOR_EXPIRED"):
        check_in(client, training_id, resume_after_sequence={training_id: 99})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "is not the training that you ask about"):
        check_in(client, training_id, resume_after_sequence={new_id(): 1})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "beyond the end of any log"):
        check_in(client, training_id, resume_after_sequence={training_id: 1 << 62})
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "last_retry_after"):
        check_in(client, training_id, last_retry_after={"seconds": -1})
    with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "requires the role"):
        check_in(person("VIEWER"))


def test_a_program_that_is_subscribed_excludes_others(actor: Person, clients: list[Person]) -> None:
    client, program = clients[0], new_id()
    training_id = actor.create(client_ids=[client.user_id]).training_id
    events = client.subscribe(training_id, session_id=program)
    with fails_with("FAILED_PRECONDITION", "ALREADY_PARTICIPATING", "a token of its own"):
        check_in(client, training_id, session_id=new_id())
    check_in(client, training_id, session_id=program)
    check_in(client, training_id)
    events.cancel()
    until(lambda: not is_excluded(client, training_id))


def is_excluded(client: Person, training_id: str) -> bool:
    try:
        check_in(client, training_id, session_id=new_id())
    except grpc.RpcError:
        return True
    return False


def test_who_has_checked_in_counts_as_connected(actor: Person, clients: list[Person]) -> None:
    ids = [client.user_id for client in clients]
    cohort = Cohort(min_available=2, available_only=True)
    training_id = actor.create(client_ids=ids, cohort=cohort, round_policy=RoundPolicy(min_updates=1)).training_id
    actor.start(training_id)
    assert look(actor, training_id).waiting_for == "participants: 0 of 2 connected"
    check_in(clients[0], training_id, attributes={"device": "phone"})
    assert look(actor, training_id).num_connected == 1
    check_in(clients[1], training_id)
    until(lambda: look(actor, training_id).state == round_pb2.ROUND_STATE_OPEN)
    found = look(actor, training_id)
    assert {one.user_id for one in found.participants} == set(ids[:2])
    assert all(one.subscribed for one in found.participants)
    assert "phone" in [one.attributes.get("device") for one in found.participants]
    # The third one was not there, and is not asked.
    assert kinds(check_in(clients[2], training_id).events) == ["training_started"]


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Server]:
    options = ("--check-in-seconds", "0.1", "--max-check-ins-per-second", "2")
    with Server(tmp_path / "data", options=options) as server:
        yield server


def test_the_operator_sets_the_pace(quick: Server) -> None:
    with grpc.insecure_channel(quick.address) as channel:
        admin = Person(channel, quick.admin_token)
        clients = [admin.make(quick.address, "CLIENT") for _ in range(16)]
        found = [waits(check_in(client)) for client in clients]
        # The first ones wait 0.6 s on average, as there is no training; the last ones as long as all need: 10 s.
        assert 0.2 < found[0] < 1
        assert all(4.5 <= one <= 15 for one in found[-2:])
        # Who was told elsewhere to come back after an hour is one of many.
        stranger = admin.make(quick.address, "CLIENT")
        assert waits(check_in(stranger, last_retry_after={"seconds": 3600})) > 30
        for client in (*clients, stranger):
            client.channel.close()


def test_a_participant_that_does_not_come_back_is_absent(quick: Server) -> None:
    with grpc.insecure_channel(quick.address) as channel:
        admin = Person(channel, quick.admin_token)
        clients = [admin.make(quick.address, "CLIENT") for _ in range(2)]
        policy = RoundPolicy(absent_after={"seconds": 1})
        training_id = admin.create(client_ids=[client.user_id for client in clients], round_policy=policy).training_id
        for client in clients:
            check_in(client, training_id)
        admin.start(training_id)
        clients[0].submit(training_id, model_file(1))
        # It counts as connected for the time that it was told, and some seconds more.
        until(lambda: admin.get(training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
        found = look(admin, training_id)
        assert [one.failure.reason for one in found.participants if not one.arrived] == ["ABSENT"]
        for client in clients:
            client.channel.close()
