"""A new kind of round is one class and one line in the registry: the rest of the server takes it as it comes."""

import pytest

from aggregations import FED_AVG
from contracts.world import World, blob
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN
from fedround_server.domain.errors import FieldInvalid, RoundNotOpen
from fedround_server.domain.event import Event, RoundStarted
from fedround_server.domain.model import Manifest
from fedround_server.domain.rounds import KINDS
from fedround_server.domain.rounds.kind import (
    Computation,
    Evaluation,
    ExpectedTensors,
    NewArtifact,
    RoundKind,
)
from fedround_server.domain.training import TrainingSpec, TrainingState
from fedround_server.domain.update import Submission
from fedround_server.services import convert
from fedround_server.store import Store


class Survey(RoundKind):
    """Asks the participants how satisfied they are with a version."""

    name = "SURVEY"
    public_name = "EVALUATE"
    submission = Submission.REPORT

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        return "surveyed" in spec.name

    def required_metrics(self, spec: TrainingSpec) -> tuple[str, ...]:
        return ("satisfaction",)

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> Evaluation:
        return Evaluation()


class Gradients(RoundKind):
    """Collects gradients at the last version, and keeps their mean beside it."""

    name = "GRADIENTS"
    public_name = "TRAIN"

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        return "differentiated" in spec.name and last

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        return ExpectedTensors({f"gradient/{name}": tensor for name, tensor in model.items()}, prefix="gradient/")

    def computation(self, spec: TrainingSpec, step: int) -> Computation:
        return Computation(FED_AVG)

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> NewArtifact:
        return NewArtifact("gradients", {"participants": num_updates})


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Survey(), Gradients()):
        monkeypatch.setitem(KINDS, kind.name, kind)


async def last_started(store: Store, training_id: str, user_id: str) -> Event:
    page = await store.events.poll(training_id, user_id, 0, 1000)
    return [event for event in page.events if isinstance(event.payload, RoundStarted)][-1]


async def test_a_kind_of_round_with_reports(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, name="surveyed", target_num_updates=1)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    current = await store.rounds.current(training.training_id)
    assert current is not None
    assert (current.number, current.kind.name, current.model_version) == (1, "SURVEY", 1)
    told = convert.event(await last_started(store, training.training_id, clients[0]))
    assert told.round_started.kind == ROUND_KIND_EVALUATE
    with pytest.raises(RoundNotOpen, match="use SubmitMetrics"):
        await world.submit(training.training_id, 1, clients[0])
    with pytest.raises(FieldInvalid, match="satisfaction"):
        await world.report(training.training_id, 1, clients[0], 10, loss=0.5)
    for client in clients:
        await world.report(training.training_id, 1, client, 10, satisfaction=0.75)
    assert await world.commit(training.training_id)
    after = await store.trainings.get(training.training_id, actor)
    assert (after.state, after.model_version) == (TrainingState.COMPLETED, 1)
    (view,) = await store.models.page_versions(after.model_id, actor, None, 1)
    assert view.metrics == {"satisfaction": 0.75}


async def test_a_kind_of_round_that_makes_an_artifact(store: Store, world: World) -> None:
    actor, clients, training = await world.running(2, name="differentiated", target_num_updates=1)
    for client in clients:
        await world.submit(training.training_id, 0, client)
    await world.commit(training.training_id)
    told = convert.event(await last_started(store, training.training_id, clients[0]))
    assert told.round_started.kind == ROUND_KIND_TRAIN
    for client in clients:
        await world.submit(training.training_id, 1, client)
    assert await world.commit(training.training_id, "the mean gradient")
    after = await store.trainings.get(training.training_id, actor)
    assert (after.state, after.model_version) == (TrainingState.COMPLETED, 1)
    version = await store.models.get_version(after.model_id, 1, actor)
    assert version.artifacts["gradients"].blob == blob("the mean gradient")
    assert version.artifacts["gradients"].details == {"participants": 2}


async def test_both_follow_each_other_in_the_order_of_the_registry(store: Store, world: World) -> None:
    _, (client,), training = await world.running(1, name="surveyed, differentiated", target_num_updates=2)
    kinds = []
    while (current := await store.rounds.current(training.training_id)) and not current.state.is_over:
        kinds.append(current.kind.name)
        if current.kind.submission is Submission.REPORT:
            await world.report(training.training_id, current.number, client, 1, satisfaction=1)
        else:
            await world.submit(training.training_id, current.number, client)
        await world.commit(training.training_id)
    assert kinds == ["TRAIN", "SURVEY", "TRAIN", "SURVEY", "GRADIENTS"]
