"""Users and trainings in a store, for tests that are about what happens to them."""

import hashlib
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aggregations import FED_AVG
from fedround_server.domain.limits import Quotas
from fedround_server.domain.model import BlobRef, Dtype, NewModel, TensorSpec
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.report import NewReport
from fedround_server.domain.token import Token
from fedround_server.domain.training import Evaluation, Training, TrainingSpec
from fedround_server.domain.update import NewUpdate, Update
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store import Store

MANIFEST = {"layer/weight": TensorSpec(Dtype.F32, (2, 3)), "count": TensorSpec(Dtype.I64, ())}
SPEC = TrainingSpec(
    name="digits",
    description="",
    target_num_updates=2,
    metric_names=(),
    client_ids=(),
    aggregation=FED_AVG,
    round_policy=RoundPolicy(),
    evaluation=Evaluation.EVERY_ROUND,
    max_num_examples=1000,
)


def new_id() -> str:
    return str(uuid.uuid4())


def blob(content: str) -> BlobRef:
    return BlobRef(hashlib.sha256(content.encode()).hexdigest(), len(content))


def new_model(content: str = "zeros") -> NewModel:
    return NewModel("digits", "a small network", MANIFEST, blob(content))


class World:
    """A store, and a clock that ticks once a call."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    @property
    def now(self) -> datetime:
        """A new point in time."""
        self._now += timedelta(seconds=1)
        return self._now

    async def user(self, role: Role = Role.CLIENT, name: str = "", **labels: str) -> str:
        user = User(new_id(), name or f"user {new_id()}", role, self.now, labels)
        token = Token(blob(user.user_id).sha256, user.create_time)
        await self.store.users.create([UserView(user, (), (token,))])
        return user.user_id

    async def users(self, count: int) -> list[str]:
        return sorted([await self.user() for _ in range(count)])

    async def training(self, actor: str, clients: list[str], **spec: Any) -> Training:
        return await self.create(actor, replace(SPEC, client_ids=tuple(clients), **spec))

    async def create(
        self, actor: str, spec: TrainingSpec, *, quota: int = 1000, rounds_allowed: int | None = None
    ) -> Training:
        model = None if spec.model_id else new_model()
        shadow_ids = [new_id() for _ in spec.aggregation.shadows]
        quotas = Quotas(quota)
        return await self.store.trainings.create(
            new_id(), actor, spec, model, new_id(), quotas, self.now, shadow_ids, rounds_allowed
        )

    async def running(self, clients: int = 3, **spec: Any) -> tuple[str, list[str], Training]:
        """An actor, its clients, and their training, which is started."""
        actor, users = await self.user(Role.ACTOR), await self.users(clients)
        made = await self.training(actor, users, **spec)
        return actor, users, await self.store.trainings.start(made.training_id, actor, None, self.now)

    async def submit(
        self, training_id: str, number: int, user: str, content: str = "", num_examples: int = 10, **changed: Any
    ) -> tuple[Update, bool]:
        new = replace(update(training_id, number, user, content, num_examples), **changed)
        return await self.store.submissions.submit_update(new_id(), new, self.now)

    async def report(self, training_id: str, number: int, user: str, num_examples: int, **metrics: float) -> bool:
        new = NewReport(training_id, number, user, num_examples, metrics)
        return (await self.store.submissions.submit_report(new_id(), new, self.now))[1]

    async def commit(self, training_id: str, content: str = "") -> bool:
        """Commits the closed round, as the aggregation that it waits for would."""
        task = await self.store.rounds.find_aggregation(training_id)
        assert task is not None
        result = None if task.computation is None else blob(content or f"version {task.round.number + 1}")
        return await self.store.rounds.commit(training_id, task.round.number, task.round.epoch, result, self.now)


def update(training_id: str, number: int, user: str, content: str = "", num_examples: int = 10) -> NewUpdate:
    return NewUpdate(training_id, number, user, blob(content or f"{number} {user}"), num_examples, {"loss": 0.5})
