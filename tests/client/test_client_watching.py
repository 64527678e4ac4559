"""The live view of `fedround training watch`: what it says of a situation, and that it fits."""

import pytest
from rich.cells import cell_len

from client.scripted import TRAINING
from fedround.v1.aggregation_pb2 import UPDATE_PRECISION_FLOAT16
from fedround.v1.event_pb2 import (
    ROUND_KIND_EVALUATE,
    ROUND_KIND_TRAIN,
    Event,
    ModelInfo,
    RoundClosed,
    RoundStarted,
    TrainingStarted,
    UpdateAccepted,
)
from fedround.v1.round_pb2 import (
    ROUND_STATE_OPEN,
    ROUND_STATE_PENDING,
    WAIT_RULE_AFTER_MIN,
    RejectedUpdate,
    Round,
    RoundParticipant,
)
from fedround.v1.training_pb2 import (
    EVALUATION_EVERY_ROUND,
    TRAINING_STATE_INITIAL,
    TRAINING_STATE_ONGOING,
    ModelSelection,
    ParticipantFailure,
    Training,
    TrainingSpec,
)
from fedround_client.command.watching.situation import Situation
from fedround_client.command.watching.view import View, sparkline
from fedround_client.observer import DescribedEvent, Unreachable

BEGIN = 1_800_000_000
SPEC = TrainingSpec(
    name="digits",
    target_num_updates=20,
    metric_names=["accuracy"],
    evaluation=EVALUATION_EVERY_ROUND,
    selection=ModelSelection(metric="accuracy"),
)


class Watched:
    """Tells a situation what happens, second by second."""

    def __init__(self) -> None:
        training = Training(training_id=TRAINING, spec=SPEC, state=TRAINING_STATE_ONGOING, model_version=2)
        training.start_time.FromSeconds(BEGIN)
        self.situation = Situation(training)
        self.sequence = 0

    def event(self, at: float, line: str = "", **payload) -> None:
        self.sequence += 1
        event = Event(training_id=TRAINING, sequence=self.sequence, **payload)
        event.create_time.FromMilliseconds(round((BEGIN + at) * 1000))
        self.situation.add(DescribedEvent(event, line), BEGIN + at)

    def version(self, version: int, at: float, accuracy: float) -> None:
        number = 2 * version - 2
        for kind, metrics in ((ROUND_KIND_TRAIN, {}), (ROUND_KIND_EVALUATE, {"accuracy": accuracy})):
            self.event(at, round_started=RoundStarted(round=number, kind=kind, model=ModelInfo(size_bytes=4000)))
            closed = RoundClosed(round=number, kind=kind, model_version=version, num_updates=2, metrics=metrics)
            self.event(at, round_closed=closed)
            number += 1

    def lines(self, at: float, width: int = 80, height: int = 24) -> list[str]:
        lines = View().lines(self.situation, width, height, BEGIN + at)
        assert len(lines) <= height
        assert max(cell_len(line.plain) for line in lines) <= width
        return [line.plain for line in lines]

    def text(self, at: float, **size: int) -> str:
        return "\n".join(self.lines(at, **size))


def participant(name: str, **fields) -> RoundParticipant:
    return RoundParticipant(user_id=name, name=name, **fields)


def open_round(**fields) -> Round:
    found = Round(number=4, kind=ROUND_KIND_TRAIN, state=ROUND_STATE_OPEN, attempt=1, max_attempts=3, **fields)
    found.open_time.FromSeconds(BEGIN + 40)
    return found


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.event(0, "started", training_started=TrainingStarted(target_num_updates=20))
    watched.version(1, 10, 0.5)
    watched.version(2, 20, 0.75)
    watched.event(40, round_started=RoundStarted(round=4, kind=ROUND_KIND_TRAIN, model=ModelInfo(size_bytes=4000)))
    return watched


def test_who_is_missing_and_why(watched):
    away = participant("site 4")
    away.last_seen_time.FromSeconds(BEGIN - 80)
    failed = participant("site 5", failure=ParticipantFailure(reason="TRAIN_FAILED", message="CUDA\nout of memory"))
    absent = participant("site 6", failure=ParticipantFailure(reason="ABSENT"))
    there = [participant("site 2", subscribed=True, uploaded_bytes=1000), participant("site 3", subscribed=True)]
    people = [failed, absent, *there, away, participant("site 7"), participant("site 1", arrived=True)]
    found = open_round(participants=people, num_participants=7, updates_arrived=1, updates_expected=5)
    found.deadline.FromSeconds(BEGIN + 100)
    watched.situation.add(found, BEGIN + 41)
    found.participants[2].uploaded_bytes = 1600
    watched.situation.add(found, BEGIN + 42)
    assert watched.lines(43)[:11] == [
        "digits  running for 43 s, ends about " + watched.lines(43)[0].partition("about ")[2],
        "round 5 of 40: training; version 2 of 20",
        "open for 3 s, deadline in 57 s",
        "━" * 8 + "─" * 32 + "  1 of 5 updates",
        "",
        "  site 2  ━━━━────── uploading 40 % of 4.0 kB, 600 B/s",
        "  site 3  connected",
        "  site 5  failed: TRAIN_FAILED: CUDA out of memory",
        "  site 6  absent",
        "  site 4  last seen 2 min 3 s ago",
        "  site 7  never connected",
    ]
    assert watched.lines(43)[0].endswith("(10 s a version)")


def test_bytes_without_a_percentage_where_the_size_of_updates_is_not_known(watched):
    started = RoundStarted(round=4, kind=ROUND_KIND_TRAIN, update_precision=UPDATE_PRECISION_FLOAT16)
    watched.event(41, round_started=started)
    sending = participant("site 2", uploaded_bytes=1000)
    watched.situation.add(open_round(participants=[sending], num_participants=1), BEGIN + 41)
    assert "  site 2  uploading, 1.0 kB arrived, interrupted" in watched.lines(42)


def test_a_large_cohort(watched):
    people = [participant(f"site {number:04}", subscribed=True) for number in range(200)]
    found = open_round(participants=people, num_participants=10_000, updates_arrived=3, updates_expected=10_000)
    watched.situation.add(found, BEGIN + 41)
    watched.event(42, "x" * 300)
    for height in (8, 12, 24, 50):
        lines = watched.lines(42, height=height)
        shown = sum("connected" in line for line in lines)
        assert f"  and {9_997 - shown:,} more" in lines
    assert watched.lines(42)[-1] == "x" * 79 + "…"
    assert len(watched.lines(42, width=20, height=3)) == 3


def test_metrics_by_version(watched):
    (line,) = [line for line in watched.lines(43) if line.startswith("  accuracy")]
    assert line == "  accuracy  0.75       version 2, best 0.75 at version 2  ▁█"


def test_events_are_shown_before_the_round_is_asked_for(watched):
    people = [participant("site 1", subscribed=True), participant("site 2", subscribed=True)]
    found = open_round(participants=people, num_participants=2, updates_expected=2)
    watched.situation.add(found, BEGIN + 41)
    accepted = UpdateAccepted(round=4, participant_id="site 1", updates_arrived=1, updates_expected=2)
    watched.event(42, update_accepted=accepted)
    lines = watched.lines(42)
    assert lines[3].endswith("1 of 2 updates")
    assert ("  site 1  connected" in lines, "  site 2  connected" in lines) == (False, True)
    closed = RoundClosed(round=4, kind=ROUND_KIND_TRAIN, model_version=3, num_updates=2)
    watched.event(43, round_closed=closed)
    watched.event(43, round_started=RoundStarted(round=5, kind=ROUND_KIND_EVALUATE))
    assert watched.lines(43)[1] == "round 6 of 40: evaluation; version 3 of 20"
    assert watched.lines(43)[3].rstrip() == "─" * 40


def test_rejected_updates_and_the_end_of_the_wait(watched):
    rejected = RejectedUpdate(reason="UPDATE_NOT_FINITE", count=2, message="tensor 'w' contains NaN")
    one = participant("site 2", rejected_updates=[rejected])
    found = open_round(participants=[one], num_participants=1, wait_rule=WAIT_RULE_AFTER_MIN)
    found.rejected_updates.append(rejected)
    found.wait_end_time.FromSeconds(BEGIN + 50)
    watched.situation.add(found, BEGIN + 41)
    text = watched.text(43)
    assert "  rejected 2: UPDATE_NOT_FINITE (site 2): tensor 'w' contains NaN" in text
    assert "enough arrived, closes within 7 s" in text


def test_a_pending_round_and_a_pause(watched):
    found = Round(number=4, state=ROUND_STATE_PENDING, waiting_for="1 more of 3 participants to connect")
    watched.situation.add(found, BEGIN + 41)
    assert "waiting for 1 more of 3 participants to connect" in watched.lines(43)
    watched.situation.training.paused = True
    assert watched.lines(43)[0] == "digits  started 43 s ago, paused"


def test_a_round_that_is_done_is_not_open_to_a_participant(watched):
    training = Training(round=4, updates_arrived=2, updates_expected=2, paused=True)
    training.MergeFrom(watched.situation.training)
    watched.situation.add(training, BEGIN + 41)
    assert "2 of 2 updates, aggregating" in watched.text(42)
    assert "open for 2 s" in watched.text(42)
    watched.event(43, round_closed=RoundClosed(round=4, kind=ROUND_KIND_TRAIN, model_version=3, num_updates=2))
    assert "2 of 2 updates" in watched.text(44)
    assert "aggregating" not in watched.text(44)
    assert "open for" not in watched.text(44)


def test_before_the_start():
    watched = Watched()
    watched.situation.training.state = TRAINING_STATE_INITIAL
    assert watched.lines(0)[1].endswith("`fedround training start` opens the first round")


def test_a_server_that_is_away(watched):
    watched.situation.add(Unreachable("UNAVAILABLE: it cannot be reached"), BEGIN + 43)
    assert watched.lines(43)[0] == "digits  reconnecting: UNAVAILABLE: it cannot be reached"
    watched.situation.add(Unreachable(), BEGIN + 44)
    assert "running for 44 s" in watched.lines(44)[0]


def test_what_others_have_chosen_is_escaped(watched):
    hostile = "\x1b[2J\u202e[bold]"
    watched.situation.training.spec.name = hostile
    people = [participant(hostile, failure=ParticipantFailure(reason=hostile, message=hostile))]
    found = open_round(participants=people, num_participants=1)
    found.rejected_updates.add(reason=hostile, message=hostile)
    watched.situation.add(found, BEGIN + 41)
    watched.event(42, f"update of {hostile}", update_accepted=UpdateAccepted(round=4))
    text = watched.text(42)
    assert all(line.isprintable() for line in text.splitlines())
    assert "[bold]" in text
    assert "update of \\x1b[2J" in text


def test_columns_are_aligned_where_letters_take_two_cells(watched):
    people = [participant(name, subscribed=True) for name in ("site 1", "病院", "病院" * 10, "n" * 50)]
    watched.situation.add(open_round(participants=people, num_participants=4), BEGIN + 41)
    found = [line.removesuffix("connected") for line in watched.lines(42) if line.endswith("connected")]
    assert [cell_len(line) for line in found] == [24] * 4


def test_sparklines():
    assert sparkline([1, 2, 3], 10) == "▁▅█"
    assert sparkline([5, 1, 2, 3], 3) == "▁▅█"
    assert sparkline([2, float("nan"), 2], 5) == "▁ ▁"
    assert sparkline([1], 0) == ""


def test_ascii_terminals(watched):
    lines = View(is_ascii=True).lines(watched.situation, 80, 24, BEGIN + 43)
    assert all(line.plain.isascii() for line in lines)
