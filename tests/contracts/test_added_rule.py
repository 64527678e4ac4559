"""A new rule is one class, one line in the registry and one message: server, database, SDK and command take it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from safetensors.numpy import load_file
from torch import Tensor

from contracts.world import World
from fedround.v1 import aggregation_pb2
from fedround_client import aggregation as sdk
from fedround_client.command import aggregation as command
from fedround_server.aggregators import STAGES
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.options import check_range
from fedround_server.aggregators.rule import LinearRule, Shares, StatefulRule, StepContext, Updates
from fedround_server.aggregators.server_optimizer import Sgd
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import aggregation as service
from fedround_server.store import Store
from unit.aggregating import Rounds, Sent
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


@dataclass(frozen=True)
class Heavy(StatefulRule):
    """The rule with a state of CONTRIBUTING.md: a mean with momentum."""

    name = "heavy"
    slots = ("v",)

    def shares(self, updates: Updates) -> Shares:
        return Shares([1.0] * len(updates), len(updates))

    def step(self, delta: Tensor, state: Mapping[str, Tensor], context: StepContext) -> Tensor | None:
        state["v"].mul_(0.9).add_(delta)
        return state["v"].clone()


def test_a_rule_with_state_is_as_short(tmp_path: Path) -> None:
    heavy, momentum = (
        Rounds(tmp_path, found)
        for found in (Aggregation(Heavy()), Aggregation(FedAvg(), server_optimizer=Sgd(1.0, momentum=0.9)))
    )
    model = {"w": torch.zeros(3)}
    for number in range(3):
        updates = [Sent({"w": model["w"] + one + number}) for one in (1, 4)]
        made, expected = heavy.aggregate(model, updates), momentum.aggregate(model, updates)
        assert made["w"].tolist() == expected["w"].tolist()
        assert heavy.slot("heavy/v")["w"].tolist() == momentum.slot("sgd/v")["w"].tolist()
        model = made


def test_the_sdk_and_the_command_take_it(messages: Any) -> None:
    whole, capped = messages
    assert sdk.aggregate(capped(examples=5)) == whole(capped=capped(examples=5))
    made = command.aggregation_option("capped:examples=5", "", "", "", ())
    assert made == whole(capped=capped(examples=5))
    assert made is not None
    assert command.aggregation_text(made) == "capped(examples=5)"
