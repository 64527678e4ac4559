"""Participants that poll: when they ask, what they work on, and what they do when the server is away."""

import pytest

from client.rounds import file_of, finished, info_of, plus_one, round_started
from client.scripted import MODEL, OK, OTHER, TRAINING, UNAVAILABLE, USER, chunk_response, error_status
from fedround.v1.event_pb2 import Event, RoundClosed
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import CheckInResponse, SubmitUpdateResponse
from fedround.v1.training_pb2 import GetTrainingsResponse
from fedround.v1.user_pb2 import GetMyselfResponse, User
from fedround_client import AlreadyParticipating, Participation
from fedround_client.check_in import CheckIns

pytestmark = pytest.mark.timeout(30)


def response(*events, retry_after=10, ended=False, **cursors):
    made = CheckInResponse(events=events, ended=ended, resume_after_sequence={TRAINING: 1, **cursors})
    made.retry_after.FromMilliseconds(round(retry_after * 1000))
    return made


def closed(sequence, number):
    return Event(training_id=TRAINING, sequence=sequence, round_closed=RoundClosed(round=number))


def participating(server, training_id=TRAINING, train=plus_one):
    call = server.run(server.client.participate, train, training_id=training_id, mode="poll")
    server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER)))
    if training_id is None:
        server.reply("GetTrainings", GetTrainingsResponse())
    return call


def serve_round(server, number):
    _, rpc = server.stream("DownloadModel")
    file = file_of(number)
    rpc.send_response(chunk_response(DownloadModelResponse, file, info=info_of(number, file)))
    rpc.terminate(*OK)
    upload = server.upload("SubmitUpdate")
    spec = upload.take_request().spec
    upload.terminate(SubmitUpdateResponse(), *OK)
    return spec.round


def test_a_participant_works_on_what_a_check_in_brings(server):
    call = participating(server)
    first = server.reply("CheckIn", response())
    assert (first.training_id, dict(first.resume_after_sequence)) == (TRAINING, {})
    assert first.session_id == server.client._rpc.session_id
    assert first.attributes["sdk"].startswith("fedround ")
    assert not first.HasField("last_retry_after")
    began = server.time.time()
    # Nothing has happened since: the server need not be asked whether the round is over.
    second = server.reply("CheckIn", response(round_started(2, 0), retry_after=7.5, **{TRAINING: 2}))
    assert server.time.time() == began + 10
    assert dict(second.resume_after_sequence) == {TRAINING: 1}
    assert second.last_retry_after.ToMilliseconds() == 10_000
    assert serve_round(server, 0) == 0
    third = server.reply("CheckIn", response(closed(3, 0), finished(4), ended=True))
    assert dict(third.resume_after_sequence) == {TRAINING: 2}
    assert call.result(10) == Participation(TRAINING, MODEL, 9, rounds=1)


def test_the_time_of_the_work_counts(server):
    def train(model, round_):
        server.time.sleep_for(4)
        return plus_one(model, round_)

    call = participating(server, train=train)
    server.reply("CheckIn", response(round_started(2, 0)))
    began = server.time.time()
    serve_round(server, 0)
    server.reply("CheckIn", response(finished(3)))
    assert server.time.time() == began + 10
    call.result(10)


def test_of_several_rounds_that_have_started_the_last_one_counts(server):
    call = participating(server)
    events = [round_started(2, 0), closed(3, 0), round_started(4, 1), closed(5, 1), round_started(6, 2)]
    server.reply("CheckIn", response(*events))
    assert serve_round(server, 2) == 2
    server.reply("CheckIn", response(finished(7)))
    assert call.result(10).rounds == 1


def test_a_round_that_may_be_over_is_asked_about(server):
    events = [round_started(2, 0), closed(3, 0)]
    seen = []
    check_ins = CheckIns(server.client._rpc, TRAINING)

    def follow():
        for event in check_ins:
            seen.append((event.sequence, check_ins.is_live))

    call = server.run(follow)
    server.reply("CheckIn", response(*events, retry_after=0))
    # There are more events: the next call comes at once.
    began = server.time.time()
    server.reply("CheckIn", response(round_started(4, 1), ended=True))
    call.result(10)
    assert server.time.time() == began
    assert seen == [(2, False), (3, False), (4, True)]


def test_all_trainings(server):
    call = participating(server, None)
    other = round_started(8, 5, training_id=OTHER)
    server.reply("CheckIn", response(round_started(2, 0), other, **{TRAINING: 2, OTHER: 8}))
    assert [serve_round(server, 0), serve_round(server, 5)] == [0, 5]
    asked = server.reply("CheckIn", response(finished(3)))
    assert dict(asked.resume_after_sequence) == {TRAINING: 2, OTHER: 8}
    assert call.result(10).training_id == TRAINING


def test_a_server_that_is_away_is_not_asked_more_often(server):
    seen = []
    check_ins = CheckIns(server.client._rpc, TRAINING, draw=lambda: 0.25, heartbeats=True)
    call = server.run(lambda: seen.extend(event.WhichOneof("payload") for event in check_ins))
    server.reply("CheckIn", response(retry_after=400))
    _, answer = server.unary("CheckIn")
    for _ in range(3):
        began = server.time.time()
        answer(None, UNAVAILABLE)
        request, answer = server.unary("CheckIn")
        # Three quarters of what the server said last, and not a back-off of seconds.
        assert server.time.time() - began == pytest.approx(300)
        assert request.last_retry_after.seconds == 400
    answer(response(ended=True))
    call.result(10)
    assert seen == ["heartbeat", "heartbeat"]


def test_errors_that_do_not_pass_end_the_participation(server):
    call = participating(server)
    status = error_status(UNAVAILABLE[1].FAILED_PRECONDITION, "ALREADY_PARTICIPATING")
    server.fail("CheckIn", status)
    assert isinstance(call.exception(10), AlreadyParticipating)


def test_a_server_that_was_restored_is_asked_from_the_beginning(server):
    call = participating(server)
    server.reply("CheckIn", response(**{TRAINING: 5}))
    server.fail("CheckIn", error_status(UNAVAILABLE[1].OUT_OF_RANGE, "CURSOR_EXPIRED"))
    assert not server.reply("CheckIn", response(finished(2), ended=True)).resume_after_sequence
    assert call.result(10).model_version == 9


def test_an_unknown_mode_is_rejected(server):
    with pytest.raises(ValueError, match="mode must be one of subscribe, poll"):
        server.client.participate(plus_one, mode="push")
