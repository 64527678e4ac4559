"""A new rule is one class, one line in the registry and one message: server, database, SDK and command take it."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from safetensors.numpy import load_file

from contracts.world import World
from fedround.v1 import aggregation_pb2
from fedround_client import aggregation as sdk
from fedround_client.command import aggregation as command
from fedround_server.aggregators import STAGES
from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import LinearRule, Shares, Updates
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import aggregation as service
from fedround_server.store import Store
from unit.test_aggregation import make


@dataclass(frozen=True)
class Capped(LinearRule):
    """FedAvg in which no participant counts for more than a number of examples."""

    name = "capped"
    examples: int = 100

    def check(self) -> None:
        check_range("examples", self.examples, 1)

    def shares(self, updates: Updates) -> Shares:
        weights = [min(weight, self.examples) for weight in updates.weights]
        return Shares(weights, sum(weights))


def extended() -> tuple[type[Any], type[Any]]:
    """The messages Aggregation and Capped of an aggregation.proto that has both."""
    file = FileDescriptorProto()
    aggregation_pb2.DESCRIPTOR.CopyToProto(file)
    kinds = FieldDescriptorProto
    file.message_type.add(name="Capped").field.add(
        name="examples", number=1, type=kinds.TYPE_UINT32, label=kinds.LABEL_OPTIONAL
    )
    (whole,) = (one for one in file.message_type if one.name == "Aggregation")
    (algorithm,) = (index for index, one in enumerate(whole.oneof_decl) if one.name == "algorithm")
    whole.field.add(
        name="capped",
        number=29,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=".fedround.v1.Capped",
        oneof_index=algorithm,
    )
    pool = DescriptorPool()
    pool.Add(file)
    named = [pool.FindMessageTypeByName(f"fedround.v1.{name}") for name in ("Aggregation", "Capped")]
    first, second = map(GetMessageClass, named)
    return first, second


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> tuple[type[Any], type[Any]]:
    """The messages, once the rule is in the registry and the code is generated."""
    found = extended()
    monkeypatch.setitem(STAGES["algorithm"], "capped", Capped)  # type: ignore[arg-type]  # it is a dict
    monkeypatch.setattr(service, "aggregation_pb2", SimpleNamespace(Aggregation=found[0]))
    monkeypatch.setattr(sdk, "Aggregation", found[0])
    monkeypatch.setattr(command, "Aggregation", found[0])
    monkeypatch.setattr(command, "_ALGORITHMS", command._members(found[0].DESCRIPTOR, "algorithm"))
    return found


async def test_the_server_reads_stores_and_shows_it(store: Store, world: World, messages: Any) -> None:
    whole, capped = messages
    chosen = service.read(whole(capped=capped(examples=5), clipping={"fixed": {"norm": 2}}))
    assert chosen.rule == Capped(5)
    actor, (user,), training = await world.running(1, aggregation=chosen)
    found = (await store.trainings.get(training.training_id, actor)).spec.aggregation
    assert found == chosen
    assert service.write(found) == whole(capped=capped(examples=5), clipping={"fixed": {"norm": 2}})
    assert service.read(whole(capped=capped())).rule == Capped(100)
    await world.submit(training.training_id, 0, user)
    task = await store.rounds.find_aggregation(training.training_id)
    assert task is not None
    assert task.computation is not None
    assert task.computation.aggregation == chosen


def test_its_options_are_checked(messages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, capped = messages
    monkeypatch.setattr(Capped, "check", lambda rule: check_range("examples", rule.examples, 10))
    with pytest.raises(FieldInvalid, match=r"spec\.aggregation\.capped\.examples: is 5; must be finite and >= 10"):
        service.read(whole(capped=capped(examples=5)))


def test_the_engine_computes_it(tmp_path: Path) -> None:
    updates = [{"w": np.full(3, value, np.float32)} for value in (0, 4)]
    found = make(tmp_path, {"w": np.zeros(3, np.float32)}, updates, [1, 1000], Aggregation(Capped(3)))
    assert load_file(found)["w"].tolist() == [3, 3, 3]


def test_the_sdk_and_the_command_take_it(messages: Any) -> None:
    whole, capped = messages
    assert sdk.aggregate(capped(examples=5)) == whole(capped=capped(examples=5))
    made = command.aggregation_option("capped:examples=5", "", "", "", ())
    assert made == whole(capped=capped(examples=5))
    assert made is not None
    assert command.aggregation_text(made) == "capped(examples=5)"
