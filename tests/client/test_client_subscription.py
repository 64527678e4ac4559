import itertools

import grpc
import pytest

from client.scripted import OK, OTHER, TRAINING, UNAVAILABLE, cut, drain, error_status, is_cancelled
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import Event
from fedround.v1.round_pb2 import GetRoundResponse, Round, RoundParticipant
from fedround.v1.training_pb2 import GetTrainingResponse, Training
from fedround_client import CursorExpired, TokenInvalid, TrainingFailed, TrainingNotFound, TrainingRemoved

pytestmark = pytest.mark.timeout(30)


def started(sequence, training_id=TRAINING):
    return Event(training_id=training_id, sequence=sequence, training_started=event_pb2.TrainingStarted())


def finished(sequence, training_id=TRAINING):
    return Event(training_id=training_id, sequence=sequence, training_finished=event_pb2.TrainingFinished())


def heartbeat(sequence):
    return Event(training_id=TRAINING, sequence=sequence, heartbeat=event_pb2.Heartbeat(sequence=sequence))


def subscription(server, *events):
    request, rpc = server.stream("Subscribe")
    for event in events:
        rpc.send_response(event)
    return dict(request.resume_after_sequence), rpc


def sequences(server, *arguments, **options):
    return server.run(lambda: [event.sequence for event in server.client.watch(*arguments, **options)])


def test_watch_resumes_behind_the_last_event_and_ends_with_the_training(server):
    call = sequences(server, TRAINING)
    cursors, rpc = subscription(server, started(1), started(2))
    assert cursors == {}
    cut(rpc)
    cursors, rpc = subscription(server, started(2), started(3), finished(4))
    assert cursors == {TRAINING: 2}
    assert call.result(10) == [1, 2, 3, 4]


def test_watch_starts_behind_the_given_sequence(server):
    call = sequences(server, TRAINING, resume_after=7)
    cursors, _ = subscription(server, started(8), finished(9))
    assert cursors == {TRAINING: 7}
    assert call.result(10) == [8, 9]


def test_watch_of_all_trainings_keeps_a_cursor_for_each_and_outlives_them(server):
    events = server.client.watch()
    call = server.run(lambda: [(event.training_id, event.sequence) for event in itertools.islice(events, 4)])
    request, rpc = server.stream("Subscribe")
    assert request.training_id == ""
    for event in (started(1), started(5, OTHER), finished(2)):
        rpc.send_response(event)
    rpc.terminate(*OK)
    cursors, _ = subscription(server, started(6, OTHER))
    assert cursors == {TRAINING: 2, OTHER: 5}
    assert call.result(10) == [(TRAINING, 1), (OTHER, 5), (TRAINING, 2), (OTHER, 6)]


def test_heartbeats_move_the_cursor_and_are_not_yielded(server):
    call = sequences(server, TRAINING)
    _, rpc = subscription(server, started(1), heartbeat(6))
    cut(rpc)
    cursors, _ = subscription(server, finished(7))
    assert cursors == {TRAINING: 6}
    assert call.result(10) == [1, 7]


def test_going_away_reconnects(server):
    call = sequences(server, TRAINING)
    away = Event(training_id=TRAINING, sequence=1, going_away=event_pb2.GoingAway(message="restart"))
    subscription(server, started(1), away)
    cursors, _ = subscription(server, finished(2))
    assert cursors == {TRAINING: 1}
    assert call.result(10) == [1, 2]


def test_a_silent_stream_is_dead_after_a_minute(server):
    call = sequences(server, TRAINING)
    _, rpc = subscription(server, started(1))
    drain(rpc)
    server.alarm_in(60)
    server.time.sleep_for(59)
    rpc.send_response(heartbeat(1))
    drain(rpc)
    server.alarm_in(60)
    server.time.sleep_for(59)  # 118 s after the event, 59 s after the heartbeat
    assert not is_cancelled(rpc)
    server.time.sleep_for(1)
    rpc.cancelled()
    cursors, _ = subscription(server, finished(2))
    assert cursors == {TRAINING: 1}
    assert call.result(10) == [1, 2]


def test_the_time_that_the_caller_needs_is_not_silence(server):
    events = server.client.watch(TRAINING)
    call = server.run(next, events)
    _, rpc = subscription(server, started(1))
    assert call.result(10).sequence == 1
    server.time.sleep_for(10_000)
    rpc.send_response(finished(2))
    assert server.run(next, events).result(10).sequence == 2


def test_closing_the_iterator_cancels_the_call(server):
    events = server.client.watch(TRAINING)
    call = server.run(next, events)
    _, rpc = subscription(server, started(1))
    call.result(10)
    events.close()
    rpc.cancelled()


def test_the_back_off_grows_while_the_server_is_down(server, monkeypatch):
    drawn = []
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: drawn.append(high) or high)
    call = sequences(server, TRAINING)
    for _ in range(20):
        server.stream("Subscribe")[1].terminate(*UNAVAILABLE)
    subscription(server, finished(1))
    assert call.result(10) == [1]
    assert drawn[:6] == [0.5, 1, 2, 4, 8, 10]
    assert set(drawn[6:]) == {10}


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("UNAUTHENTICATED", "TOKEN_INVALID", TokenInvalid),
        ("NOT_FOUND", "TRAINING_NOT_FOUND", TrainingNotFound),
        ("OUT_OF_RANGE", "CURSOR_EXPIRED", CursorExpired),
    ],
)
def test_an_error_that_is_not_transient_is_raised(server, code, reason, kind):
    call = sequences(server, TRAINING)
    server.stream("Subscribe")[1].terminate(*error_status(grpc.StatusCode[code], reason))
    assert type(call.exception(10)) is kind


def test_a_stream_of_an_ended_training_may_be_empty(server):
    call = sequences(server, TRAINING, resume_after=9)
    server.stream("Subscribe")[1].terminate(*OK)
    assert call.result(10) == []


def test_wait_returns_the_finished_training(server):
    call = server.run(server.client.wait, TRAINING)
    subscription(server, started(1), finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, model_version=3)))
    assert call.result(10).model_version == 3


def test_wait_begins_again_when_the_server_was_restored(server):
    call = server.run(server.client.wait, TRAINING)
    _, rpc = server.stream("Subscribe")
    rpc.send_response(started(7))
    cut(rpc)
    request, rpc = server.stream("Subscribe")
    assert dict(request.resume_after_sequence) == {TRAINING: 7}
    rpc.terminate(*error_status(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED"))
    request, rpc = server.stream("Subscribe")
    assert dict(request.resume_after_sequence) == {}
    rpc.send_response(finished(3))
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, model_version=3)))
    assert call.result(10).model_version == 3


def test_wait_retries_reading_the_finished_training(server):
    call = server.run(server.client.wait, TRAINING)
    subscription(server, started(1), finished(2))
    for _ in range(9):
        server.fail("GetTraining", UNAVAILABLE)
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, model_version=3)))
    assert call.result(10).model_version == 3


def test_wait_raises_the_error_of_a_failed_training(server):
    call = server.run(server.client.wait, TRAINING)
    failed = event_pb2.TrainingFailed(reason="DEADLINE_MISSED", message="one of two updates")
    subscription(server, Event(training_id=TRAINING, sequence=2, training_failed=failed))
    server.fail("GetTraining", error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND"))
    error = call.exception(10)
    assert type(error) is TrainingFailed
    assert (error.reason, error.message) == ("DEADLINE_MISSED", "one of two updates")


def test_wait_raises_when_the_training_is_removed(server):
    call = server.run(server.client.wait, TRAINING)
    removed = Event(training_id=TRAINING, sequence=2, training_removed=event_pb2.TrainingRemoved())
    subscription(server, removed)
    assert type(call.exception(10)) is TrainingRemoved


def test_wait_times_out_while_the_server_is_silent(server):
    call = server.run(server.client.wait, TRAINING, 5)
    subscription(server)
    server.alarm_in(5)
    server.time.sleep_for(5)
    assert isinstance(call.exception(10), TimeoutError)


def test_wait_times_out_while_the_server_is_down(server):
    call = server.run(server.client.wait, TRAINING, 100)
    while server.called("Subscribe", call):
        server.stream("Subscribe")[1].terminate(*UNAVAILABLE)
    error = call.exception(10)
    assert isinstance(error, TimeoutError)
    assert "connection reset" in str(error)
    assert server.time.time() == 1100


def test_lost_connections_are_logged_with_decreasing_frequency(server, caplog):
    call = server.run(server.client.wait, TRAINING, 1000)
    for _ in range(9):
        server.stream("Subscribe")[1].terminate(*UNAVAILABLE)
    subscription(server, started(1), finished(2))
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING)))
    call.result(10)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all("connection reset" in text for text in messages)
    assert ["in a row" in text for text in messages] == [False, True, True, True]


def test_wait_says_what_the_round_waits_for(server, caplog):
    call = server.run(server.client.wait, TRAINING, 5)
    drain(subscription(server, started(1))[1])
    server.alarm_in(5)
    server.time.sleep_for(5)
    server.reply("GetTraining", GetTrainingResponse(training=Training(state="TRAINING_STATE_ONGOING", round=3)))
    missing = [RoundParticipant(name=f"site {number}", subscribed=number == 0) for number in range(12)]
    there = RoundParticipant(name="site 99", arrived=True)
    round_ = Round(number=3, waiting_for="12 more of 13 updates; there is no deadline", participants=[*missing, there])
    asked = server.reply("GetRound", GetRoundResponse(round=round_))
    assert (asked.training_id, asked.round) == (TRAINING, 3)
    message = str(call.exception(10))
    assert message.startswith(
        "The training did not end within 5 s. Round 4 waits for 12 more of 13 updates; there is no"
    )
    assert "missing: site 0 (connected), site 1 (not connected), " in message
    assert message.endswith("site 9 (not connected), 2 more.")
    assert "site 99" not in message
    assert caplog.records == []


def test_wait_tells_a_participant_how_many_updates_have_arrived(server):
    call = server.run(server.client.wait, TRAINING, 5)
    drain(subscription(server, started(1))[1])
    server.alarm_in(5)
    server.time.sleep_for(5)
    ongoing = Training(state="TRAINING_STATE_ONGOING", round=3, updates_arrived=1, updates_expected=4)
    server.reply("GetTraining", GetTrainingResponse(training=ongoing))
    server.fail("GetRound", error_status(grpc.StatusCode.PERMISSION_DENIED, "NOT_ACTOR"))
    assert str(call.exception(10)).endswith(" Round 4: 1 of 4 results have arrived.")


def test_wait_says_that_a_training_was_not_started(server):
    call = server.run(server.client.wait, TRAINING, 25)
    _, rpc = subscription(server, heartbeat(0))
    drain(rpc)
    server.alarm_in(25)
    server.time.sleep_for(25)
    server.reply("GetTraining", GetTrainingResponse(training=Training(state="TRAINING_STATE_INITIAL")))
    assert str(call.exception(10)) == "The training did not end within 25 s. It has not been started."


def test_a_silent_stream_is_logged_as_what_it_is(server, caplog):
    call = sequences(server, TRAINING)
    _, rpc = subscription(server, started(1))
    drain(rpc)
    server.alarm_in(60)
    server.time.sleep_for(60)
    subscription(server, finished(2))
    assert call.result(10) == [1, 2]
    (record,) = caplog.records
    assert "The server at there:1 sent nothing for 60 s" in record.getMessage()
    assert "CANCELLED" not in caplog.text


def test_a_watching_subscription_has_no_session(server):
    server.run(list, server.client.watch(TRAINING))
    assert server.stream("Subscribe")[0].session_id == ""
