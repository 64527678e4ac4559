"""Whatever clients do, in whatever order, and whatever fails meanwhile: the coordinator does what the rules say."""

import hashlib
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from chaos.coordinator_instance import Fault
from chaos.machine import Machine, a_model, admitted
from chaos.rules import Training
from contracts.world import SPEC
from fedround_server.domain.errors import TokenInvalid
from fedround_server.domain.policy import OnMissed, RoundPolicy
from fedround_server.domain.training import Evaluation
from fedround_server.domain.user import Role
from sizes import IS_LONG, size

EXAMPLES = size("MACHINE", 8)
STEPS = size("MACHINE_STEPS", 30)
MOST = 3

one = st.integers(0, 11)
seldom = st.sampled_from([False] * 5 + [True])
some = st.sets(one, min_size=1, max_size=3)
deadlines = st.sampled_from([None, timedelta(minutes=1), timedelta(hours=1)])
faults = st.none() | st.builds(Fault, st.integers(1, 6), st.booleans(), st.booleans())


class Rules(Machine):
    """Calls in the names of an actor and of clients, mixed with kills, outages and clocks that are set."""

    # Users.

    @initialize(deadline=deadlines, retries=st.integers(0, 2))
    def begin(self, deadline: timedelta | None, retries: int) -> None:
        made, token = self._call(lambda coordinator: coordinator.users.create(self._name(), Role.ACTOR, None, ()))
        self.actor = made.user
        self.tokens[self.actor.user_id] = token
        for _ in range(3):
            self.add_client()
        self.create({0, 1, 2}, 3, True, 0, deadline, retries, False, None)
        self.start(0, False, 0, False, None)

    @precondition(lambda self: len(self.clients) < 5)
    @rule()
    def add_client(self) -> None:
        made, token = self._call(lambda coordinator: coordinator.users.create(self._name(), Role.CLIENT, None, ()))
        self.clients.append(made.user.user_id)
        self.tokens[made.user.user_id] = token

    @rule(who=one, fault=faults)
    def rotate_token(self, who: int, fault: Fault | None) -> None:
        user_id = self._client(who)
        old = self.tokens[user_id]
        caller = self._call(lambda coordinator: admitted(coordinator, old))
        self.tokens[user_id] = self._perform(
            lambda coordinator: coordinator.users.rotate_token(caller, user_id, None, None), set(), fault
        )
        assert isinstance(self._try(lambda coordinator: admitted(coordinator, old)), TokenInvalid)
        assert self._call(lambda coordinator: admitted(coordinator, self.tokens[user_id])).user_id == user_id

    @precondition(lambda self: len(self.clients) > 2)
    @rule(who=one, fault=faults)
    def remove_client(self, who: int, fault: Fault | None) -> None:
        user_id = self._client(who)
        self._perform(
            lambda coordinator: coordinator.remove_user(user_id, force=False), set(), fault, again={"USER_NOT_FOUND"}
        )
        self.clients.remove(user_id)
        self.gone.append(user_id)
        for training in self._alive():
            if not training.is_ended and user_id in training.present:
                training.leave({user_id}, self.now)
        self._follow()
        assert isinstance(self._try(lambda coordinator: admitted(coordinator, self.tokens[user_id])), TokenInvalid)

    # Trainings.

    @precondition(lambda self: len(self.trainings) < MOST)
    @rule(
        who=some,
        updates=st.integers(1, 3),
        evaluates=st.booleans(),
        min_updates=st.integers(0, 2),
        deadline=deadlines,
        retries=st.integers(0, 2),
        unknown_user=seldom,
        fault=faults,
    )
    def create(
        self,
        who: set[int],
        updates: int,
        evaluates: bool,
        min_updates: int,
        deadline: timedelta | None,
        retries: int,
        unknown_user: bool,
        fault: Fault | None,
    ) -> None:
        ids = {self._client(number) for number in who}
        wanted = ids | set(self.gone[:1] if unknown_user else ())
        retries = 0 if deadline is None else retries
        on_missed = OnMissed.RETRY if retries else OnMissed.FAIL
        policy = RoundPolicy(min_updates, deadline, on_missed=on_missed, max_retries=retries)
        spec = replace(
            SPEC,
            client_ids=tuple(wanted),
            target_num_updates=updates,
            metric_names=("accuracy",) if evaluates else (),
            round_policy=policy,
            evaluation=Evaluation.EVERY_ROUND,
            request_id=str(uuid.uuid4()),
        )
        file = a_model(0)
        made = self._perform(
            lambda coordinator: coordinator.trainings.create(
                self.actor.user_id, spec, self._incoming(self.actor.user_id, file)
            ),
            {"UNKNOWN_CLIENTS"} if wanted != ids else set(),
            fault,
        )
        if made is not None:
            version = hashlib.sha256(file).hexdigest()
            training = Training(
                made.training_id,
                made.model_id,
                self.actor.user_id,
                updates,
                evaluates,
                min_updates,
                deadline,
                [version],
                retries,
            )
            training.register(ids)
            self.trainings.append(training)

    @precondition(lambda self: self.trainings)
    @rule(which=one, by_client=seldom, who=one, repeat=st.booleans(), fault=faults)
    def start(self, which: int, by_client: bool, who: int, repeat: bool, fault: Fault | None) -> None:
        training = self._training(which)
        caller = self._client(who) if by_client else self.actor.user_id
        request = training.start_request if repeat and training.start_request else str(uuid.uuid4())
        reasons = training.start_errors(caller, request)
        if self._perform(
            lambda coordinator: coordinator.trainings.start(training.training_id, caller, request), reasons, fault
        ):
            training.start(request, self.now)
            self._follow()

    @precondition(lambda self: self.trainings)
    @rule(which=one, by_client=seldom, who=some, unknown_user=seldom, fault=faults)
    def register(self, which: int, by_client: bool, who: set[int], unknown_user: bool, fault: Fault | None) -> None:
        training = self._training(which)
        users = {self._client(number) for number in who} | set(self.gone[:1] if unknown_user else ())
        caller = self._client(min(who)) if by_client else self.actor.user_id
        reasons = training.register_errors(caller, users, set(self.clients))
        if self._perform(
            lambda coordinator: coordinator.trainings.register(training.training_id, caller, sorted(users)),
            reasons,
            fault,
        ):
            training.register(users)

    @precondition(lambda self: self.trainings)
    @rule(which=one, by_client=seldom, who=some, fault=faults)
    def leave(self, which: int, by_client: bool, who: set[int], fault: Fault | None) -> None:
        training = self._training(which)
        users = {self._client(number) for number in who}
        caller = self._client(min(who)) if by_client else self.actor.user_id
        reasons = training.remove_clients_errors(caller, users)
        done = self._perform(
            lambda coordinator: coordinator.trainings.remove_clients(training.training_id, caller, sorted(users)),
            reasons,
            fault,
        )
        if done:
            training.leave(users, self.now)
            self._follow()

    @precondition(lambda self: self.trainings)
    @rule(which=one, by_client=seldom, who=one, force=seldom, fault=faults)
    def remove(self, which: int, by_client: bool, who: int, force: bool, fault: Fault | None) -> None:
        training = self._training(which)
        caller = self._client(who) if by_client else self.actor.user_id
        reasons = training.removal_errors(caller, force)
        if self._perform(
            lambda coordinator: coordinator.trainings.remove(training.training_id, caller, force=force),
            reasons,
            fault,
        ):
            training.remove()

    @precondition(lambda self: self.trainings)
    @rule(
        which=one,
        by_client=seldom,
        who=one,
        what=st.sampled_from(["pause", "pause", "resume", "resume", "AFTER_ROUND", "NOW"]),
        repeat=st.booleans(),
        fault=faults,
    )
    def control(self, which: int, by_client: bool, who: int, what: str, repeat: bool, fault: Fault | None) -> None:
        training = self._training(which)
        before = [request for request, done in training.requests.items() if done == what]
        request = before[-1] if repeat and before else str(uuid.uuid4())
        self._control(training, self._client(who) if by_client else self.actor.user_id, what, request, fault)

    # Rounds.

    @precondition(lambda self: any(training.is_running for training in self.trainings))
    @rule(which=one, who=one, content=st.integers(1, 2), shift=st.sampled_from([0] * 6 + [-1, 1]), fault=faults)
    def submit(self, which: int, who: int, content: int, shift: int, fault: Fault | None) -> None:
        running = [training for training in self.trainings if training.is_running]
        training = running[which % len(running)]
        number = max(0, len(training.rounds) - 1 + shift)
        self._submit(training, self._client(who), number, content, fault)

    @precondition(lambda self: any(training.is_open for training in self.trainings))
    @rule(which=one, fault=faults)
    def submit_what_is_missing(self, which: int, fault: Fault | None) -> None:
        waiting = [training for training in self.trainings if training.is_open]
        training = waiting[which % len(waiting)]
        asked = training.rounds[-1]
        self._submit(training, min(asked.missing), asked.number, 1, fault)

    @precondition(lambda self: any(training.is_open for training in self.trainings))
    @rule(which=one, fault=faults)
    def submit_more(self, which: int, fault: Fault | None) -> None:
        self.submit_what_is_missing(which, fault)

    @precondition(lambda self: any(training.rounds for training in self.trainings))
    @rule(which=one, who=one, number=st.integers(0, 3), content=st.integers(1, 2), report=st.booleans())
    def submit_anything(self, which: int, who: int, number: int, content: int, report: bool) -> None:
        training = self._training(which)
        self._send(training, self._client(who), number, "EVALUATE" if report else "TRAIN", content, None)

    @rule()
    def hold_the_engine(self) -> None:
        self.instance.engine.may_end.clear()

    @precondition(lambda self: not self.instance.engine.may_end.is_set())
    @rule()
    def let_the_engine_go_on(self) -> None:
        self.instance.engine.may_end.set()
        self.runner.run(self.instance.settle())
        self._follow()

    # Metrics that were not asked for.

    @rule()
    def kill(self) -> None:
        self._restart()

    @rule(passes=st.sampled_from([1, 30, 61, 3601]))
    def time_passes(self, passes: int) -> None:
        self._pass(timedelta(seconds=passes))

    @precondition(lambda self: any(training.fires is not None for training in self.trainings))
    @rule()
    def a_deadline_passes(self) -> None:
        fires = min(training.fires for training in self.trainings if training.fires is not None)
        self._pass(max(fires - self.clocks.passed, timedelta(0)))

    @rule(minutes=st.sampled_from([-90, -1, 1, 90]))
    def the_clock_is_set(self, minutes: int) -> None:
        # Timers that a kill has left were armed anew before.
        self._follow()
        self.clocks.jump(timedelta(minutes=minutes))

    # What can be seen.

    @precondition(lambda self: self.trainings)
    @rule(which=one, who=st.none() | one)
    def subscribe(self, which: int, who: int | None) -> None:
        training = self._training(which)
        user = self.actor.user_id if who is None else self._client(who)
        if user != training.actor and user not in training.views:
            return
        cursor = self.cursors.get((training.training_id, user), 0)
        events = self.runner.run(self._listen(user, training.training_id, cursor))
        expected = [sequence for sequence in training.view(user) if sequence > cursor]
        assert [event.sequence for event in events] == expected
        kinds = [training.log[sequence - 1].kind for sequence in expected]
        assert [type(event.payload).__name__ for event in events] == kinds
        self.cursors[training.training_id, user] = max([cursor, *expected])

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        for training in self.trainings:
            self.runner.run(self._check(training))
        self.sound = True


def machine_on(url: str) -> type[Rules]:
    class OnDatabase(Rules):
        database = url

    return OnDatabase


@pytest.mark.attack
@pytest.mark.timeout(300 + 30 * EXAMPLES)
def test_the_rules_hold_whatever_happens(database: str) -> None:
    examples = max(1, EXAMPLES // 4) if database else EXAMPLES
    case = machine_on(database).TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
