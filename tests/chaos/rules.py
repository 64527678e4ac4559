"""A small model of what a training is, written from its description alone: who may do what, and what follows."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Entry:
    """An event of the log, and who may read it: "all", "actor", "cohort", or one user."""

    kind: str
    audience: str
    number: int | None = None


@dataclass
class Round:
    """One ask-and-collect cycle; what arrives is a digest and its weight."""

    number: int
    kind: str
    cohort: set[str]
    deadline: datetime | None
    expected: int
    state: str = "OPEN"
    attempt: int = 1
    removed: set[str] = field(default_factory=set)
    arrived: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def members(self) -> set[str]:
        return self.cohort - self.removed

    @property
    def counted(self) -> dict[str, tuple[str, int]]:
        return {user: what for user, what in sorted(self.arrived.items()) if user in self.members}

    @property
    def missing(self) -> set[str]:
        return self.members - self.arrived.keys()


@dataclass
class Training:
    """A training with all its rounds."""

    training_id: str
    model_id: str
    actor: str
    target: int
    evaluates: bool
    min_updates: int
    deadline: timedelta | None
    versions: list[str]
    max_retries: int = 0
    present: set[str] = field(default_factory=set)
    # Which sequences of the log a participant may read: behind the first, up to the second.
    views: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    state: str = "INITIAL"
    start_request: str = ""
    is_removed: bool = False
    failure: str = ""
    paused: bool = False
    stop: str = ""
    # What each request to control it did.
    requests: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    # When the deadline's timer goes off, on the monotonic clock.
    fires: timedelta | None = None

    @property
    def round(self) -> Round | None:
        return self.rounds[-1] if self.rounds else None

    @property
    def is_running(self) -> bool:
        return not self.is_removed and self.state == "ONGOING"

    @property
    def is_open(self) -> bool:
        return self.is_running and self.round is not None and self.round.state == "OPEN"

    @property
    def is_ended(self) -> bool:
        return self.state in ("COMPLETED", "ERROR")

    @property
    def is_aggregating(self) -> bool:
        return self.is_running and self.round is not None and self.round.state == "AGGREGATING"

    # RejectedUpdates: all the reasons that there are; none if it is allowed.

    def _actor_errors(self, caller: str) -> set[str]:
        if self.is_removed or (caller != self.actor and caller not in self.present):
            return {"TRAINING_NOT_FOUND"}
        return set() if caller == self.actor else {"NOT_ACTOR"}

    def start_errors(self, caller: str, request: str) -> set[str]:
        if reasons := self._actor_errors(caller):
            return reasons
        if request == self.start_request:
            return set()
        if self.state != "INITIAL":
            return {"TRAINING_NOT_INITIAL"}
        return {"NO_PARTICIPANTS"} if len(self.present) < max(1, self.min_updates) else set()

    def register_errors(self, caller: str, users: set[str], known: set[str]) -> set[str]:
        if reasons := self._actor_errors(caller):
            return reasons
        return ({"TRAINING_ENDED"} if self.is_ended else set()) | ({"UNKNOWN_CLIENTS"} if users - known else set())

    def remove_clients_errors(self, caller: str, users: set[str]) -> set[str]:
        reasons = self._actor_errors(caller)
        if not self.is_removed and users == {caller} and caller in self.views:
            reasons = set()
        if reasons:
            return reasons
        if users - self.views.keys():
            return {"UNKNOWN_CLIENTS"}
        # Those that have left already are skipped.
        leaving = users & self.present
        if leaving and self.is_ended:
            return {"TRAINING_ENDED"}
        return {"LAST_PARTICIPANT"} if self.is_running and leaving == self.present else set()

    def removal_errors(self, caller: str, force: bool) -> set[str]:
        if self.is_removed and caller == self.actor:
            return set()
        if reasons := self._actor_errors(caller):
            return reasons
        return {"TRAINING_RUNNING"} if self.is_running and not force else set()

    def control_errors(self, caller: str, what: str, request: str) -> set[str]:
        if reasons := self._actor_errors(caller):
            return reasons
        if request in self.requests:
            return set()
        if not self.is_running:
            return {"TRAINING_NOT_RUNNING"}
        if what == "pause" and self.paused:
            return {"TRAINING_PAUSED"}
        return {"TRAINING_NOT_PAUSED"} if what == "resume" and not self.paused else set()

    def submission_errors(self, user: str, number: int, kind: str, digest: str) -> set[str]:
        if self.is_removed or user not in self.views:
            return {"TRAINING_NOT_FOUND"}
        if number >= len(self.rounds):
            return {"ROUND_NOT_OPEN"}
        asked = self.rounds[number]
        before = asked.arrived.get(user)
        if before is not None and (asked.state == "ABANDONED" or user not in asked.members):
            # Another one is judged like a first one.
            if before[0] == digest:
                return {"UPDATE_SUPERSEDED"}
        elif before is not None:
            return set() if before[0] == digest else {"UPDATE_EXISTS", "METRICS_EXIST"}
        reasons = set()
        if asked.state != "OPEN" or asked.kind != kind:
            reasons.add("ROUND_NOT_OPEN")
        if user not in asked.members:
            reasons.add("NOT_IN_COHORT")
        return reasons

    # What follows.

    def start(self, request: str, now: datetime) -> None:
        if self.state == "INITIAL":
            self.state, self.start_request = "ONGOING", request
            self._append_event("TrainingStarted", "all")
            self._open("TRAIN", now)

    def register(self, users: set[str]) -> None:
        new = sorted(users - self.present)
        for user in new:
            self.views[user] = (len(self.log), None)
        self.present |= users
        for user in new if self.is_running else ():
            self._append_event("TrainingStarted", user)

    def leave(self, users: set[str], now: datetime) -> None:
        users = users & self.present
        if not users:
            return
        for user in sorted(users):
            self._append_event("ClientRemoved", user)
            self.views[user] = (self.views[user][0], len(self.log))
        self.present -= users
        if self.round is not None and self.round.state == "OPEN":
            self.round.removed |= users & self.round.cohort
            self.judge(now)

    def control(self, what: str, request: str, now: datetime) -> None:
        """Pauses or resumes it, or stops it: AFTER_ROUND or NOW."""
        if request in self.requests:
            return
        self.requests[request] = what
        if what in ("pause", "resume"):
            self.paused = what == "pause"
            self._append_event("TrainingPaused" if self.paused else "TrainingResumed", "all")
            if not self.paused and not self.is_open and not self.is_aggregating:
                self._go_on(now)
            return
        self.stop = "NOW" if "NOW" in (what, self.stop) else what
        if self.is_aggregating or (self.is_open and what == "AFTER_ROUND"):
            self._append_event("StopRequested", "all")
        else:
            self._abandon()
            self._complete()

    def remove(self) -> None:
        if self.is_removed:
            return
        self._abandon()
        self._append_event("TrainingRemoved", "all")
        self.is_removed = True

    def submit(self, user: str, number: int, digest: str, weight: int, now: datetime) -> None:
        asked = self.rounds[number]
        if user not in asked.arrived:
            asked.arrived[user] = (digest, weight)
            self._append_event("UpdateAccepted", "actor")
            self.judge(now)

    def judge(self, now: datetime, *, due: bool = False) -> None:
        asked = self.round
        if asked is None or asked.state != "OPEN" or not self.is_running:
            return
        asked.expected = self._expected(len(asked.members))
        if not asked.members:
            self._abandon()
            self._go_on(now)
        elif len(asked.counted) >= asked.expected:
            asked.state = "AGGREGATING"
            if asked.kind == "EVALUATE":
                self.commit(now)
        elif due and asked.attempt <= self.max_retries:
            self._repeat(asked, now)
        elif due:
            self._fail("DEADLINE_MISSED")

    def commit(self, now: datetime) -> None:
        done = self.round
        assert done is not None
        done.state, self.fires = "DONE", None
        if done.kind == "TRAIN":
            self.versions.append(result_of(self.versions[-1], list(done.counted.values())))
        self._append_event("RoundClosed", "all")
        self._go_on(now)

    def view(self, user: str) -> list[int]:
        """The sequences of the log that a user may read."""
        numbered = list(enumerate(self.log, 1))
        if user == self.actor:
            return [sequence for sequence, _ in numbered]
        after, until = self.views[user]
        return [
            sequence
            for sequence, entry in numbered
            if after < sequence <= (until or len(self.log))
            and (
                entry.audience in ("all", user)
                or (entry.audience == "cohort" and user in self.rounds[entry.number or 0].cohort)
            )
        ]

    def _go_on(self, now: datetime) -> None:
        """What follows a round that is over; nothing does during a pause."""
        over = self.round
        assert over is not None
        if over.state == "ABANDONED":
            following = over.kind
        elif over.kind == "TRAIN" and self.evaluates:
            following = "EVALUATE"
        else:
            following = "TRAIN" if len(self.versions) <= self.target else ""
        if self.stop or not following:
            self._complete()
        elif not self.paused:
            self._open(following, now)

    def _complete(self) -> None:
        self.state, self.paused, self.fires = "COMPLETED", False, None
        self._append_event("TrainingFinished", "all")

    def _open(self, kind: str, now: datetime) -> None:
        if not self.present:
            self._fail("NO_PARTICIPANTS")
            return
        deadline = None if self.deadline is None else now + self.deadline
        opened = Round(len(self.rounds), kind, set(self.present), deadline, self._expected(len(self.present)))
        self.rounds.append(opened)
        self.fires = None
        self._append_event("RoundStarted", "cohort", opened.number)

    def _repeat(self, asked: Round, now: datetime) -> None:
        """What has arrived stays; who was registered meanwhile joins, unless it was in the round before."""
        assert self.deadline is not None
        joining = sorted(self.present - asked.cohort)
        asked.cohort |= set(joining)
        asked.attempt += 1
        asked.deadline, self.fires = now + self.deadline, None
        asked.expected = self._expected(len(asked.members))
        self._append_event("RoundExtended", "cohort", asked.number)
        for user in joining:
            self._append_event("RoundStarted", user)

    def _expected(self, members: int) -> int:
        return min(self.min_updates, members) if self.min_updates else members

    def _fail(self, reason: str) -> None:
        self._abandon()
        self.state, self.failure, self.paused = "ERROR", reason, False
        self._append_event("TrainingFailed", "all")

    def _abandon(self) -> None:
        self.fires = None
        if self.round is not None and self.round.state in ("OPEN", "AGGREGATING"):
            self.round.state = "ABANDONED"

    def _append_event(self, kind: str, audience: str, number: int | None = None) -> None:
        self.log.append(Entry(kind, audience, number))


def result_of(model: str, updates: list[tuple[str, int]]) -> str:
    """The digest of the file that an aggregation in this suite makes of a model and updates in canonical order."""
    return hashlib.sha256(result_file(model, updates)).hexdigest()


def result_file(model: str, updates: list[tuple[str, int]]) -> bytes:
    return repr((model, updates)).encode()
