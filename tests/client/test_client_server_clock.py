"""What a participant knows of the server's clock, and so of the age of an event."""

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from client.rounds import Rounds, finished, round_started
from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import UpdateReceipt
from fedround_client.server_clock import ServerClock

pytestmark = pytest.mark.timeout(30)


def test_a_round_that_started_just_now_by_the_servers_clock_is_not_checked_for_being_over(server):
    def started_at(seconds, sequence, number):
        event = round_started(sequence, number)
        event.create_time.FromNanoseconds(round(seconds * 1e9))
        return event

    rounds = Rounds(server)
    rounds.send(started_at(1000, 1, 0))
    rounds.training_is_at(0)
    rounds.serve_model(0)
    receipt = UpdateReceipt(accept_time=Timestamp(seconds=1001))
    rounds.take_update(receipt=receipt)
    # The server's clock is at most 0.5 s further than at the receipt.
    server.time.sleep_for(0.5)
    rounds.send(started_at(1000.6, 2, 1))
    rounds.serve_model(1)
    rounds.take_update(receipt=receipt)
    server.time.sleep_for(1)
    rounds.send(started_at(1000.9, 3, 2))
    rounds.training_is_at(3)
    rounds.send(finished(4))
    assert rounds.result().rounds == 2


def test_a_round_from_the_future_is_checked_since_the_servers_clock_was_set(server):
    clock = ServerClock(server.time)
    clock.learn(server.time.time(), Timestamp(seconds=1000))
    assert clock.age(Event(create_time=Timestamp(seconds=1000))) == 0
    assert clock.age(Event(create_time=Timestamp(seconds=4600))) == math.inf
    # It was set back, and an event seems older than it is.
    assert clock.age(Event(create_time=Timestamp(seconds=400))) == 600


def test_a_deadline_is_a_time_on_the_servers_clock(server, monkeypatch):
    clock = ServerClock(server.time)
    # Nothing is known of it yet: then it is taken for the clock of this machine.
    monkeypatch.setattr("time.time", lambda: 500.0)
    assert clock.seconds_until(Timestamp(seconds=530)) == 30
    clock.learn(server.time.time(), Timestamp(seconds=1000))
    assert clock.seconds_until(Timestamp(seconds=1010, nanos=500_000_000)) == 10.5
    server.time.sleep_for(4)
    assert clock.seconds_until(Timestamp(seconds=1010, nanos=500_000_000)) == 6.5
