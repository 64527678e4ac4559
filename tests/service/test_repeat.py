"""Rounds that miss their deadline and are repeated, by raw calls."""

from typing import Any

import numpy as np
from safetensors.numpy import load

from calls import Person, download, kinds, model_file
from fedround.v1 import round_pb2, training_pb2


def policy(nanos: int, max_retries: int) -> dict[str, Any]:
    return {"deadline": {"nanos": nanos}, "on_missed": training_pb2.ON_MISSED_RETRY, "max_retries": max_retries}


def test_an_update_of_an_earlier_try_counts_once(actor: Person, clients: list[Person]) -> None:
    ids = [client.user_id for client in clients[:2]]
    made = actor.create(client_ids=ids, round_policy=policy(200_000_000, 1000))
    assert made.spec.round_policy.on_missed == training_pb2.ON_MISSED_RETRY
    assert made.spec.round_policy.max_retries == 1000
    actor.start(made.training_id)
    events = actor.subscribe(made.training_id)
    receipt = clients[0].submit(made.training_id, model_file(1), num_examples=3)
    accepted = next(event for event in events if event.HasField("update_accepted"))
    # So the update came into an earlier try than this one.
    extended = next(event.round_extended for event in events if event.HasField("round_extended"))
    assert (extended.round, extended.updates_arrived, extended.updates_expected) == (0, 1, 2)
    assert extended.attempt >= 2
    assert clients[0].submit(made.training_id, model_file(1), num_examples=3) == receipt
    assert receipt.update_id == accepted.update_accepted.update_id
    # Who begins to listen gets the round as it is now.
    started = next(clients[1].subscribe(made.training_id)).round_started
    assert started.attempt >= extended.attempt
    assert not started.submitted
    assert next(clients[0].subscribe(made.training_id)).round_started.submitted
    assert started.deadline.ToNanoseconds() >= extended.deadline.ToNanoseconds()
    clients[1].submit(made.training_id, model_file(5))
    received = list(events)
    assert kinds(received)[-2:] == ["round_closed", "training_finished"]
    assert received[-2].round_closed.num_updates == 2
    after = load(download(actor, actor.get(made.training_id).model_id)[1])
    np.testing.assert_array_equal(after["weight"], np.full((2, 3), (3 * 1 + 5) / 4, np.float32))


def test_a_round_that_misses_every_deadline_ends_the_training(actor: Person, clients: list[Person]) -> None:
    made = actor.create(client_ids=[clients[0].user_id], round_policy=policy(50_000_000, 0))
    assert made.spec.round_policy.max_retries == 3
    actor.start(made.training_id)
    log = list(actor.subscribe(made.training_id, resume_after_sequence={made.training_id: 0}))
    assert kinds(log) == ["training_started", "round_started", *["round_extended"] * 3, "training_failed"]
    assert [event.round_extended.attempt for event in log[2:5]] == [2, 3, 4]
    deadlines = [event.round_extended.deadline.ToNanoseconds() for event in log[2:5]]
    assert deadlines == sorted(set(deadlines))
    error = actor.get(made.training_id).error
    assert error.reason == "DEADLINE_MISSED"
    assert error.message.startswith("the round reached its deadline 4 times, at last with 0 of 1 updates; missing: ")
    found = actor.rounds.GetRound(round_pb2.GetRoundRequest(training_id=made.training_id)).round
    assert (found.attempt, found.max_attempts, found.state) == (4, 4, round_pb2.ROUND_STATE_ABANDONED)
