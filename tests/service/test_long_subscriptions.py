"""Subscriptions that outlive something: a part in a training, the training itself, a token."""

from typing import Any

import pytest

from calls import Person, fails_with, kinds, model_file
from fedround.v1 import event_pb2, training_pb2, user_pb2


def received(stream: Any, count: int) -> list[event_pb2.Event]:
    """The next events, heartbeats left out."""
    found: list[event_pb2.Event] = []
    while len(found) < count:
        found += [event for event in [next(stream)] if not event.HasField("heartbeat")]
    return found


def test_a_participant_that_is_registered_again_receives_events_again(actor: Person, clients: list[Person]) -> None:
    stays, leaves, _ = clients
    made = actor.create(client_ids=[stays.user_id, leaves.user_id], target_num_updates=2)
    actor.start(made.training_id)
    stream = leaves.subscribe()
    assert kinds(received(stream, 1)) == ["round_started"]
    names = {"training_id": made.training_id, "client_ids": [leaves.user_id]}
    for _ in range(2):
        actor.trainings.RemoveClients(training_pb2.RemoveClientsRequest(**names))
        assert kinds(received(stream, 1)) == ["client_removed"]
        actor.trainings.RegisterClients(training_pb2.RegisterClientsRequest(**names))
        assert kinds(received(stream, 1)) == ["training_started"]
    stays.submit(made.training_id, model_file(1))
    assert kinds(received(stream, 2)) == ["round_closed", "round_started"]


def test_the_removal_of_an_ended_training_is_reported(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[clients[0].user_id])
    actor.start(made.training_id)
    streams = [one.subscribe() for one in (actor, clients[0])]
    clients[0].submit(made.training_id, model_file(1))
    for stream in streams:
        while kinds(received(stream, 1)) != ["training_finished"]:
            pass
    actor.trainings.RemoveTraining(training_pb2.RemoveTrainingRequest(training_id=made.training_id))
    for stream in streams:
        assert kinds(received(stream, 1)) == ["training_removed"]


@pytest.mark.parametrize("all_trainings", [True, False])
def test_a_revoked_token_hears_no_more(
    admin: Person, actor: Person, clients: list[Person], all_trainings: bool
) -> None:
    made = actor.create(client_ids=[clients[0].user_id])
    actor.start(made.training_id)
    stream = clients[0].subscribe("" if all_trainings else made.training_id)
    assert kinds(received(stream, 1)) == ["round_started"]
    request = user_pb2.RotateTokenRequest(user_id=clients[0].user_id)
    new = Person(clients[0].channel, admin.users.RotateToken(request).token)
    with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
        received(stream, 1)
    assert kinds(received(new.subscribe(made.training_id), 1)) == ["round_started"]
