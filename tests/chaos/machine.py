"""How a state machine calls a coordinator, fails it, and compares it with the rules."""

import asyncio
import hashlib
import itertools
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hypothesis.stateful import RuleBasedStateMachine

from chaos.coordinator_instance import Clocks, CoordinatorInstance, Fault
from chaos.rules import Training
from contracts.blobs import chunk_of
from fedround_server.coordinator import Coordinator
from fedround_server.coordinator.subscription import Subscriptions
from fedround_server.coordinator.uploads.receive import Incoming
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import FedroundError, StoreUnavailable
from fedround_server.domain.event import Event
from fedround_server.domain.identity import Credentials
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.token import hash_token
from fedround_server.domain.training import Stop
from fedround_server.domain.user import User
from unit.safetensors_files import write

T = TypeVar("T")
# After an outage, what was left behind is taken up at the next look.
HEALING = timedelta(seconds=10)
NUMBERS = itertools.count(1)


def a_model(number: int) -> bytes:
    return write({"weight": np.full(2, number, np.float32)})


async def admitted(coordinator: Coordinator, token: str) -> User:
    """Whom a token lets in."""
    async with coordinator.access.admit(Credentials(hash_token(token), ())) as user:
        return user


class Machine(RuleBasedStateMachine):
    """A coordinator, and the rules' idea of it."""

    database = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="machine", dir=tempfile.gettempdir()))
        self.clocks = Clocks()
        self.trainings: list[Training] = []
        self.clients: list[str] = []
        self.gone: list[str] = []
        # In order: what is drawn must lead to the same each time, so who is first must not depend on chance.
        self.ids = (str(uuid.UUID(int=number)) for number in NUMBERS)
        self.tokens: dict[str, str] = {}
        self.cursors: dict[tuple[str, str], int] = {}
        self.unsure = timedelta(0)
        self.sound = True
        self.instance = self._new_instance()

    def teardown(self) -> None:
        try:
            if self.sound:
                self._finish()
        finally:
            self.runner.run(self.instance.kill())
            self.runner.close()
            shutil.rmtree(self.folder)

    @property
    def now(self) -> Any:
        return self.clocks.now()

    def _name(self) -> str:
        return f"user {uuid.uuid4()}"

    def _alive(self) -> list[Training]:
        return [training for training in self.trainings if not training.is_removed]

    def _training(self, number: int) -> Training:
        self.sound = False
        return self.trainings[number % len(self.trainings)]

    def _client(self, number: int) -> str:
        return self.clients[number % len(self.clients)]

    def _new_instance(self) -> CoordinatorInstance:
        instance = CoordinatorInstance(
            self.database or self.folder / "fedround.db", self.folder / "files", self.clocks, self.ids.__next__
        )
        self.runner.run(instance.start())
        return instance

    def _restart(self) -> None:
        self.runner.run(self.instance.kill())
        self.instance = self._new_instance()
        for training in self.trainings:
            training.fires = None
            asked = training.round
            if training.is_running and asked is not None and asked.state == "OPEN":
                training.judge(self.now, due=asked.deadline is not None and self.now >= asked.deadline)
        self._follow()

    def _follow(self) -> None:
        """The rules' part of what goes on by itself: aggregations, and timers."""
        for training in self.trainings:
            if training.is_aggregating and self.instance.engine.may_end.is_set():
                training.commit(self.now)
            asked = training.round
            if training.fires is None and training.is_open and asked is not None and asked.deadline is not None:
                current = self.runner.run(self.instance.store.rounds.current(training.training_id))
                assert current is not None
                assert current.number == asked.number
                assert current.deadline is not None
                # After an outage, the time at which the round was opened is unknown.
                assert timedelta(0) <= asked.deadline - current.deadline <= self.unsure
                asked.deadline = current.deadline
                training.fires = self.clocks.passed + (asked.deadline - self.now)
        self.unsure = timedelta(0)

    def _pass(self, duration: timedelta) -> None:
        # A rejected call that a kill interrupted has left timers that were armed anew.
        self._follow()
        self.clocks.advance(duration)
        self.runner.run(self.instance.settle())
        for training in self.trainings:
            if training.fires is not None and training.fires <= self.clocks.passed:
                training.fires = None
                training.judge(self.now, due=True)
        self._follow()

    def _may_fail(self, fault: Fault | None) -> Fault | None:
        """The fault, unless it would let two things race that may come in either order."""
        if fault is None:
            return None
        soon = self.clocks.passed + HEALING
        for training in self.trainings:
            asked = training.round
            if training.is_open and asked is not None and asked.deadline is not None:
                near = training.fires is None or training.fires <= soon
                if near or self.now + HEALING >= asked.deadline:
                    return None
            if training.is_aggregating and fault.kills:
                return None
        # Hypothesis shows what it has drawn: that stays as it is.
        return Fault(fault.number, fault.committed, fault.kills)

    def _try(self, call: Callable[[Coordinator], Awaitable[T]]) -> T | FedroundError:
        found = self.runner.run(self.instance.perform(call, None))
        assert found is None or not isinstance(found, BaseException) or isinstance(found, FedroundError), found
        return found  # type: ignore[no-any-return]

    def _call(self, call: Callable[[Coordinator], Awaitable[T]]) -> T:
        found = self._try(call)
        assert not isinstance(found, FedroundError), found
        return found

    def _perform(
        self,
        call: Callable[[Coordinator], Awaitable[Any]],
        reasons: set[str],
        fault: Fault | None,
        again: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> Any:
        """Makes a call as a client does: again, if its outcome is unknown.

        Returns:
            The response, or True; None if it failed, as it must.
        """
        self.sound = False
        fault = self._may_fail(fault)
        found = self.runner.run(self.instance.perform(call, fault))
        if fault is None or not (found is fault or isinstance(found, StoreUnavailable)):
            again = set()
        if fault is not None:
            self._survive(fault)
            if found is fault or isinstance(found, StoreUnavailable):
                found = self.runner.run(self.instance.perform(call, None))
            self.clocks.advance(HEALING)
            self.unsure = HEALING
        self.runner.run(self.instance.settle())
        if isinstance(found, FedroundError):
            assert found.reason in reasons | again, (found, reasons)
            return None if reasons else True
        assert not isinstance(found, BaseException), found
        assert not reasons, (found, reasons)
        return True if found is None else found

    def _survive(self, fault: Fault) -> None:
        if not fault.kills:
            self.runner.run(self.instance.settle())
            self.instance.clear_fault()
            return
        self.runner.run(self.instance.kill())
        self.instance = self._new_instance()
        for training in self.trainings:
            training.fires = None

    def _control(self, training: Training, caller: str, what: str, request: str, fault: Fault | None) -> None:
        def call(coordinator: Coordinator) -> Awaitable[Any]:
            control, id_ = coordinator.control, training.training_id
            if what == "pause":
                return control.pause(id_, caller, request)
            if what == "resume":
                return control.resume(id_, caller, request)
            return control.stop(id_, caller, Stop(what), request)

        if self._perform(call, training.control_errors(caller, what, request), fault):
            training.control(what, request, self.now)
            self._follow()

    def _submit(self, training: Training, user: str, number: int, content: int, fault: Fault | None) -> None:
        kind = training.rounds[number].kind if number < len(training.rounds) else "TRAIN"
        self._send(training, user, number, kind, content, fault)

    def _send(self, training: Training, user: str, number: int, kind: str, content: int, fault: Fault | None) -> None:
        rules = content + self.clients.index(user)
        if kind == "EVALUATE":
            metrics, digest = {"accuracy": float(rules)}, f"report {rules}"

            def call(coordinator: Coordinator) -> Awaitable[Any]:
                return coordinator.submissions.submit_metrics(training.training_id, number, user, rules, metrics)
        else:
            file = a_model(rules)
            digest = hashlib.sha256(file).hexdigest()

            def call(coordinator: Coordinator) -> Awaitable[Any]:
                incoming = self._incoming(user, file)
                return coordinator.submissions.submit(training.training_id, number, rules, {"loss": 0.5}, incoming)

        reasons = training.submission_errors(user, number, kind, digest)
        if self._perform(call, reasons, fault):
            training.submit(user, number, digest, rules, self.now)
            self._follow()

    def _incoming(self, user: str, file: bytes) -> Incoming:
        async def chunks() -> AsyncIterator[Chunk]:
            yield chunk_of(file[:50])
            yield chunk_of(file[50:])

        return Incoming(user, chunks(), hashlib.sha256(file).hexdigest(), len(file))

    async def _listen(self, user: str, training_id: str, cursor: int) -> list[Event]:
        found: list[Any] = []

        async def send(event: Any) -> None:
            found.append(event)

        async def greet() -> None: ...

        # A draining server sends all pending events, and going_away.
        draining = Subscriptions(self.instance.context)
        draining.close()
        await draining.follow(user, training_id, {training_id: cursor}, send, greet)
        return [event for event in found if isinstance(event, Event)]

    async def _check(self, training: Training) -> None:
        store = self.instance.store
        events = (await store.events.poll(training.training_id, training.actor, 0, 10_000)).events
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [type(event.payload).__name__ for event in events] == [entry.kind for entry in training.log]
        version = await store.models.get_version(training.model_id, None, training.actor)
        assert (version.version, version.blob.sha256) == (len(training.versions) - 1, training.versions[-1])
        if training.is_removed:
            return
        found = await store.trainings.get(training.training_id, training.actor)
        assert found.state.value == training.state
        assert set(found.participant_ids) == training.present
        assert (found.failure.reason if found.failure else "") == training.failure
        assert (found.paused, found.stop.value if found.stop else "") == (training.paused, training.stop)
        asked = training.round
        if asked is None:
            assert (found.updates_arrived, found.updates_expected) == (0, 0)
            return
        assert (found.round, found.updates_arrived, found.updates_expected) == (
            asked.number,
            len(asked.counted),
            asked.expected,
        )
        view = (await self.instance.coordinator.round_status.explain(training.training_id, None, training.actor)).view
        assert (view.round.state.value, view.round.kind) == (asked.state, KINDS[asked.kind])
        assert {member.user_id for member in view.members} == asked.members
        assert {member.user_id for member in view.members if member.arrive_time} == asked.counted.keys()

    def _finish(self) -> None:
        """Once faults stop, every running training comes to its end."""
        self.let_the_engine_go_on()
        for training in self.trainings:
            while training.is_running:
                asked = training.round
                assert asked is not None
                assert len(training.rounds) < 100
                if training.paused:
                    self._control(training, training.actor, "resume", str(uuid.uuid4()), None)
                    continue
                self._submit(training, min(asked.missing), asked.number, 1, None)
            self.runner.run(self._check(training))
