"""Lines of the log: rounds that wait, after ever longer times; many changes of one kind in one line."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.coordination import coordinating
from fedround_server.coordinator import change_log, waiting_log
from fedround_server.coordinator.change_log import MAX_LINES, ChangeLog
from fedround_server.coordinator.waiting_log import WaitingLog
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.cohort import Cohort
from fedround_server.store import Store
from fedround_server.traces import NO_TRACES

SECOND = timedelta(seconds=1)


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def info(self, event: str, **values: Any) -> None:
        self.found.append({"event": event, **values})

    def take(self) -> list[dict[str, Any]]:
        found, self.found = self.found, []
        return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    made = Lines()
    monkeypatch.setattr(waiting_log, "log", made)
    monkeypatch.setattr(change_log, "log", made)
    return made


async def test_a_round_that_waits_is_logged_after_ever_longer_times(store: Store, tmp_path: Path, lines: Lines) -> None:
    async with coordinating(store, tmp_path) as coordination:
        actor, users, training = await coordination.running(8)
        training_id, clock = training.training_id, coordination.clock
        log, start, times = WaitingLog(coordination.context), clock.now(), []
        await coordination.submit(training_id, 0, users[0])
        coordination.context.presence.begin(users[1], clock.now())
        lines.take()
        for _ in range(600):
            await log.look(await store.rounds.unfinished())
            if found := lines.take():
                times.append(round((clock.now() - start).total_seconds()))
                last = found[0]
            clock.advance(SECOND)
        assert times == [60, 120, 240, 480]
        assert last["waits_for"] == "ALL_UPDATES"
        assert (last["arrived"], last["expected"], last["members"], last["failed"]) == (1, 8, 8, 0)
        assert (last["connected"], last["registered"], len(last["missing"])) == (1, 8, 5)
        # The next round begins anew.
        for user in users[1:]:
            await coordination.submit(training_id, 0, user)
        await coordination.until(actor, training_id, lambda training: training.round == 1)
        lines.take()
        for _ in range(60):
            await log.look(await store.rounds.unfinished())
            clock.advance(SECOND)
        assert lines.take() == []
        await log.look(await store.rounds.unfinished())
        assert [one["round"] for one in lines.take()] == [1]


async def test_a_round_that_waits_for_connections(store: Store, tmp_path: Path, lines: Lines) -> None:
    async with coordinating(store, tmp_path) as coordination:
        await coordination.running(2, cohort=Cohort(min_available=2))
        log = WaitingLog(coordination.context)
        await log.look(await store.rounds.unfinished())
        coordination.clock.advance(60 * SECOND)
        await log.look(await store.rounds.unfinished())
        (found,) = [one for one in lines.take() if one["event"] == "round_waits"]
        assert (found["waits_for"], found["wanted"], found["connected"]) == ("PARTICIPANTS", 2, 0)
        assert "missing" not in found


def test_many_changes_of_one_kind_have_one_line(lines: Lines) -> None:
    records = [
        AuditRecord("participant_failed", "t", subject=f"user {number}", facts={"round": 1, "reason": "ABSENT"})
        for number in range(MAX_LINES + 2)
    ]
    tell = ChangeLog(NO_TRACES).tell
    tell(records[:MAX_LINES])
    assert len(lines.take()) == MAX_LINES
    tell([*records, AuditRecord("round_closed", "t", subject="1")])
    first, second = lines.take()
    assert first == {
        "event": "participant_failed",
        "training_id": "t",
        "round": 1,
        "reason": "ABSENT",
        "count": MAX_LINES + 2,
        "participant_ids": [f"user {number}" for number in range(5)],
    }
    assert second == {"event": "round_closed", "training_id": "t", "round": 1}
