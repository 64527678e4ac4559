"""The states of a training against a small model of its rules, in any order of calls, on both databases.

The model says of every call whether it is rejected and with which class, and what is to be seen afterwards.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.world import World, blob
from fedround_server.domain.errors import (
    FedroundError,
    FieldInvalid,
    LastParticipant,
    MetricsExist,
    NoParticipants,
    NotInCohort,
    RoundNotOpen,
    TrainingEnded,
    TrainingNotFound,
    TrainingNotInitial,
    UnknownClients,
    UpdateExists,
    UpdateSuperseded,
)
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.training import Evaluation
from fedround_server.domain.user import Role
from fedround_server.store import Store
from sizes import size

R = TypeVar("R")
CLIENTS = 4
EXAMPLES = 4 * size("MACHINE", 4)
clients = st.integers(0, CLIENTS - 1)
# Of the current round, the one before, or the next.
offsets = st.sampled_from([0, 0, 0, 0, -1, 1])


@dataclass
class Rules:
    """What the round machine does, in as few words as possible."""

    target: int
    min_updates: int
    evaluation: Evaluation
    retries: int
    state: str = "INITIAL"
    present: set[int] = field(default_factory=set)
    ever: set[int] = field(default_factory=set)
    version: int = 0
    # Of each round: its kind, cohort, submissions by client, whether it is open, and its result.
    rounds: list["RoundRules"] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return bool(self.rounds) and self.rounds[-1].state == "OPEN"

    @property
    def is_aggregating(self) -> bool:
        return bool(self.rounds) and self.rounds[-1].state == "AGGREGATING"

    def open_round(self, kind: str) -> None:
        self.rounds.append(RoundRules(kind, set(self.present)))
        if not self.present:
            self.rounds.pop()
            self.state = "ERROR"

    def expected(self) -> int:
        size = len(self.rounds[-1].cohort)
        return min(self.min_updates, size) if self.min_updates else size

    def judge(self, due: bool = False) -> bool:
        now = self.rounds[-1] if self.rounds else None
        if now is None or now.state != "OPEN" or self.state != "ONGOING":
            return False
        if self.expected() and len(now.counted()) >= self.expected():
            now.state = "AGGREGATING"
            return True
        if not now.cohort:
            now.state = "ABANDONED"
            self.open_round(now.kind)
        elif due and now.attempt <= self.retries:
            # Who left the round and came back stays out of it; what arrived stays in it.
            now.repeat(self.present - now.ever)
        elif due:
            now.state = "ABANDONED"
            self.state = "ERROR"
        return False

    def expected_error(self, number: int, client: int, content: str, kind: str) -> type[FedroundError] | None:
        if client not in self.ever:
            return TrainingNotFound
        row = self.rounds[number] if 0 <= number < len(self.rounds) else None
        counts = row is not None and row.state != "ABANDONED" and client in row.cohort
        if row is not None and row.submitted.get(client) == content:
            return None if counts else UpdateSuperseded
        if row is not None and client in row.submitted and counts:
            # A report beside an update of the round, and the other way round, is another one.
            return MetricsExist if row.kind == kind == "EVALUATE" else UpdateExists
        if row is None or row.state != "OPEN" or row.kind != kind:
            return RoundNotOpen
        return None if client in row.cohort else NotInCohort

    def commit(self) -> None:
        done = self.rounds[-1]
        done.state = "DONE"
        self.version += done.kind == "TRAIN"
        asks = self.evaluation is Evaluation.EVERY_ROUND or (
            self.evaluation is Evaluation.FINAL_ONLY and self.version == self.target
        )
        if done.kind == "TRAIN" and asks:
            self.open_round("EVALUATE")
        elif self.version < self.target:
            self.open_round("TRAIN")
        else:
            self.state = "COMPLETED"


@dataclass
class RoundRules:
    kind: str
    cohort: set[int]
    state: str = "OPEN"
    submitted: dict[int, str] = field(default_factory=dict)
    attempt: int = 1
    ever: set[int] = field(default_factory=set)
    joined: int = 0

    def __post_init__(self) -> None:
        self.ever = set(self.cohort)

    def repeat(self, joining: set[int]) -> None:
        self.attempt += 1
        self.cohort |= joining
        self.ever |= joining
        self.joined += len(joining)

    def counted(self) -> set[int]:
        return self.submitted.keys() & self.cohort


class RoundMachine(RuleBasedStateMachine):
    """One training of four clients, in a store that all examples share."""

    world: World
    loop: asyncio.AbstractEventLoop

    def do(self, call: Coroutine[Any, Any, R], expected: type[FedroundError] | None = None) -> R | None:
        if expected is None:
            return self.loop.run_until_complete(call)
        with pytest.raises(FedroundError) as raised:
            self.loop.run_until_complete(call)
        assert type(raised.value) is expected
        return None

    @initialize(
        wanted=st.integers(1, 3),
        min_updates=st.sampled_from([0, 0, 1, 2, CLIENTS]),
        evaluation=st.sampled_from(Evaluation),
        first=st.sets(clients, min_size=1),
        started=st.sampled_from([1, 1, 1, 2, 0]),
        retries=st.sampled_from([0, 1, 2]),
    )
    def create(
        self, wanted: int, min_updates: int, evaluation: Evaluation, first: set[int], started: int, retries: int
    ) -> None:
        self.store = self.world.store
        self.rules = Rules(wanted, min_updates, evaluation, retries, present=set(first), ever=set(first))
        on_missed = OnMissed.RETRY if retries else OnMissed.FAIL
        self.actor = self.loop.run_until_complete(self.world.user(Role.ACTOR))
        self.users = self.loop.run_until_complete(self.world.users(CLIENTS))
        made = self.do(
            self.world.training(
                self.actor,
                [self.users[client] for client in first],
                target_num_updates=wanted,
                metric_names=("loss",),
                evaluation=evaluation,
                round_policy=RoundPolicy(min_updates, timedelta(hours=1), on_missed=on_missed, max_retries=retries),
            )
        )
        assert made is not None
        self.id = made.training_id
        for _ in range(started):
            self.start()

    @precondition(lambda self: self.rules.state == "INITIAL")
    @rule()
    def start(self) -> None:
        rules = self.rules
        expected: type[FedroundError] | None = None
        if rules.state != "INITIAL":
            expected = TrainingNotInitial
        elif len(rules.present) < max(1, rules.min_updates):
            expected = NoParticipants
        self.do(self.store.trainings.start(self.id, self.actor, None, self.world.now), expected)
        if expected is None:
            rules.state = "ONGOING"
            rules.open_round("TRAIN")

    @rule(client=clients)
    def register(self, client: int) -> None:
        rules = self.rules
        expected = TrainingEnded if rules.state in ("COMPLETED", "ERROR") else None
        self.do(
            self.store.trainings.register(self.id, self.actor, [self.users[client]], self.world.now),
            expected,
        )
        if expected is None:
            rules.present.add(client)
            rules.ever.add(client)

    @rule(client=clients, arrived=st.booleans())
    def remove(self, client: int, arrived: bool) -> None:
        rules = self.rules
        if arrived and rules.is_open and rules.rounds[-1].counted():
            client = min(rules.rounds[-1].counted())
        expected: type[FedroundError] | None = None if client in rules.ever else UnknownClients
        if client in rules.present and rules.state in ("COMPLETED", "ERROR"):
            expected = TrainingEnded
        elif rules.state == "ONGOING" and rules.present == {client}:
            expected = LastParticipant
        answer = self.do(
            self.store.trainings.remove_clients(self.id, self.actor, [self.users[client]], self.world.now), expected
        )
        if answer is not None:
            rules.present.discard(client)
            if rules.rounds and rules.rounds[-1].state == "OPEN":
                rules.rounds[-1].cohort.discard(client)
            assert answer[1] == rules.judge()

    @precondition(lambda self: self.rules.is_open)
    @rule(client=clients)
    def take_the_cohorts_place(self, client: int) -> None:
        self.register(client)
        for member in sorted(self.rules.rounds[-1].cohort - {client}):
            self.remove(member, arrived=False)

    @rule(client=clients, offset=offsets, content=st.sampled_from(["a", "b"]), report=st.booleans())
    def submit(self, client: int, offset: int, content: str, report: bool) -> None:
        rules = self.rules
        number = max(0, len(rules.rounds) - 1 + offset)
        kind = "EVALUATE" if report else "TRAIN"
        said = f"{kind} {content}"
        expected = rules.expected_error(number, client, said, kind)
        user = self.users[client]
        if report:
            closed = self.do(self.world.report(self.id, number, user, 7, loss=float(ord(content))), expected)
        else:
            answer = self.do(self.world.submit(self.id, number, user, said), expected)
            closed = None if answer is None else answer[1]
        if expected is None:
            assert closed == self._accept(number, client, said)

    def _accept(self, number: int, client: int, said: str) -> bool:
        row = self.rules.rounds[number]
        if client in row.submitted:
            return False
        row.submitted[client] = said
        return self.rules.judge()

    @rule(order=st.permutations(range(CLIENTS)), count=st.integers(1, CLIENTS))
    def go_on(self, order: list[int], count: int) -> None:
        if self.rules.is_aggregating:
            self.commit(wrong_epoch=False)
        if not self.rules.is_open:
            return
        number = len(self.rules.rounds) - 1
        report = self.rules.rounds[number].kind == "EVALUATE"
        for client in order[:count]:
            if self.rules.is_open and client in self.rules.rounds[number].cohort:
                said = self.rules.rounds[number].submitted.get(client, "- a")
                self.submit(client, 0, said[-1], report)

    @precondition(lambda self: self.rules.is_open)
    @rule(client=clients)
    def report_without_the_metric(self, client: int) -> None:
        rules = self.rules
        number = max(0, len(rules.rounds) - 1)
        expected = rules.expected_error(number, client, "", "EVALUATE")
        self.do(self.world.report(self.id, number, self.users[client], 7, accuracy=1.0), expected or FieldInvalid)

    @precondition(lambda self: self.rules.rounds)
    @rule(due=st.sampled_from([False] * 5 + [True]), stale=st.sampled_from([0, 0, 0, 1, -1]))
    def judge(self, due: bool, stale: int) -> None:
        number, attempt = len(self.rules.rounds) - 1, self.rules.rounds[-1].attempt + stale
        closed = self.do(self.store.rounds.judge(self.id, number, due=due, now=self.world.now, attempt=attempt))
        assert closed == (not stale and self.rules.judge(due))

    @precondition(lambda self: self.rules.is_open and self.rules.retries)
    @rule(client=clients)
    def join_a_repeated_round(self, client: int) -> None:
        self.register(client)
        self.judge(due=True, stale=0)

    @precondition(lambda self: self.rules.is_aggregating)
    @rule(wrong_epoch=st.sampled_from([False, False, True]))
    def commit(self, wrong_epoch: bool) -> None:
        rules = self.rules
        task = self.do(self.store.rounds.find_aggregation(self.id))
        assert task is not None
        counted, trains = sorted(rules.rounds[-1].counted()), rules.rounds[-1].kind == "TRAIN"
        assert [self.users.index(update.user_id) for update in task.updates] == (counted if trains else [])
        view = self.do(self.store.rounds.explain(self.id, task.round.number, self.actor))
        assert view is not None
        arrived = [member.user_id for member in view.members if member.arrive_time is not None]
        assert sorted(map(self.users.index, arrived)) == counted
        result = blob(f"version {rules.version + 1}") if trains else None
        epoch = task.round.epoch + wrong_epoch
        done = self.do(self.store.rounds.commit(self.id, task.round.number, epoch, result, self.world.now))
        assert done != wrong_epoch
        if done:
            rules.commit()

    @invariant()
    def what_is_seen_is_what_the_rules_say(self) -> None:
        rules = self.rules
        seen = self.do(self.store.trainings.get(self.id, self.actor))
        assert seen is not None
        assert seen.state.value == rules.state
        assert set(seen.participant_ids) == {self.users[client] for client in rules.present}
        assert seen.model_version == rules.version
        assert seen.round == max(0, len(rules.rounds) - 1)
        if rules.rounds:
            current = self.do(self.store.rounds.current(self.id))
            assert current is not None
            last = rules.rounds[-1]
            assert (current.state.value, current.kind.name) == (last.state, last.kind)
            assert current.attempt == last.attempt
            assert current.deadline is not None
            assert (current.deadline - current.open_time == timedelta(hours=1)) == (last.attempt == 1)
            assert current.arrived == seen.updates_arrived == len(last.counted())
            assert current.expected == seen.updates_expected
            if last.state == "OPEN":
                assert current.expected == rules.expected()
            unfinished = {left.training_id for left in self.do(self.store.rounds.unfinished()) or []}
            assert (self.id in unfinished) == (last.state in ("OPEN", "AGGREGATING"))
            assert (self.do(self.store.rounds.find_aggregation(self.id)) is not None) == rules.is_aggregating

    def teardown(self) -> None:
        self.check_log()
        self.check_versions()

    def check_log(self) -> None:
        page = self.do(self.store.events.poll(self.id, self.actor, 0, 1000))
        assert page is not None
        events = page.events
        assert [event.sequence for event in events] == list(range(1, page.view.last_sequence + 1))
        kinds = [type(event.payload).__name__ for event in events]
        rounds = self.rules.rounds
        assert kinds.count("RoundStarted") == len(rounds) + sum(row.joined for row in rounds)
        assert kinds.count("RoundExtended") == sum(row.attempt - 1 for row in rounds)
        assert kinds.count("RoundClosed") == sum(row.state == "DONE" for row in self.rules.rounds)
        assert kinds.count("UpdateAccepted") == sum(len(row.submitted) for row in self.rules.rounds)
        assert kinds.count("TrainingFinished") == (self.rules.state == "COMPLETED")
        assert kinds.count("TrainingFailed") == (self.rules.state == "ERROR")

    def check_versions(self) -> None:
        training = self.do(self.store.trainings.get(self.id, self.actor))
        assert training is not None
        for version in range(1, self.rules.version + 1):
            found = self.do(self.store.models.get_version(training.model_id, version, self.actor))
            assert found is not None
            assert found.blob == blob(f"version {version}")


# A failure is shrunk for up to five minutes.
@pytest.mark.attack
@pytest.mark.timeout(900 + EXAMPLES)
def test_the_round_machine_keeps_its_rules(database: str, tmp_path: Path) -> None:
    with Store(database or tmp_path / "fedround.db") as store, asyncio.Runner() as runner:

        class Machine(RoundMachine):
            world = World(store)
            loop = runner.get_loop()

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(1, EXAMPLES // 4) if database else EXAMPLES,
                stateful_step_count=30,
                suppress_health_check=list(HealthCheck),
            ),
        )
