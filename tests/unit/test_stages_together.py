"""Stages, precisions and selections of tensors in all combinations: each is refused in words, or aggregates."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from contracts.world import SPEC
from fedround.v1.aggregation_pb2 import Aggregation as Message
from fedround_server.aggregators import STAGES, from_aggregation, to_aggregation
from fedround_server.aggregators.compatibility import check_reachable
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.aggregators.privacy_checks import check_private_training
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid
from fedround_server.domain.model import TensorSpec
from fedround_server.domain.tensor_selection import TensorSelection
from fedround_server.domain.transport import SCALES, Transport, UpdatePrecision
from fedround_server.engine.jobs import UpdateOrigin
from fedround_server.services import aggregation as messages
from unit.aggregating import DTYPES, Rounds, Sent, Tensors

READ, AGGREGATED = 1500, 110
"""How many combinations are read, and how many of those that go together are aggregated."""
OTHERS: dict[str, list[dict[str, Any]]] = {
    "clipping": [{}, {"fixed": {"norm": 0.5}}, {"adaptive": {"initial_norm": 0.5}}],
    "mixing": [{}, {"nearest_neighbor": {}}, {"bucketing": {}}],
    "server_optimizer": [{}, *({name: {}} for name in sorted(STAGES["server_optimizer"]))],
    "buffering": [{}, {"fed_buff": {}, "size": 20}, {"fed_async": {}}],
    "shadow": [{}, {"median": {}}, {"fed_avg": {}, "clipping": {"adaptive": {}}, "server_optimizer": {"adam": {}}}],
    "differential_privacy": [{}, {"noise_multiplier": 0.5}, {"noise_multiplier": 50, "tree": True}],
}
TRUSTED_ID = "00000000-0000-4000-8000-000000000000"
PRECISIONS = (UpdatePrecision.FULL, UpdatePrecision.FLOAT16, UpdatePrecision.INT8)
SELECTIONS = (TensorSelection(), TensorSelection(trainable=("*lora_*", "other")))


def combinations() -> Iterator[Message]:
    """Each rule with some of the combinations of other stages; the first are those with at most one of them."""
    random = Random(3)
    for name in sorted(STAGES["algorithm"]):
        every = list(product(*OTHERS.values()))
        random.shuffle(every)
        every.sort(key=lambda stages: sum(map(bool, stages)) > 1)
        for stages in every[: READ // len(STAGES["algorithm"])]:
            rule = {"trusted_client_id": TRUSTED_ID} if name == "fl_trust" else {}
            chosen = {field: stage for field, stage in zip(OTHERS, stages, strict=True) if stage}
            if "shadow" in chosen:
                chosen["shadow"] = [chosen["shadow"]]
            yield Message(**{name: rule}, **chosen)


def read(message: Message) -> Aggregation | None:
    """Reads an aggregation as a server does; None if it is refused."""
    try:
        found = messages.read(message)
        spec = replace(SPEC, aggregation=found)
        check_reachable(spec)
        check_private_training(spec)
    except AggregationIncompatible:
        return None
    return found


def sent(model: Tensors, update: Tensors, precision: UpdatePrecision) -> dict[str, Tensor]:
    """An update in a precision: float32 tensors are differences in it."""
    found = dict(update)
    for name, tensor in update.items():
        if tensor.dtype is not torch.float32 or precision is UpdatePrecision.FULL:
            continue
        difference = tensor - model[name]
        if precision is UpdatePrecision.INT8:
            scale = float(difference.abs().max()) / 127 if difference.numel() else 0.0
            found[name + SCALES] = torch.tensor([scale])
            found[name] = (difference / (scale or 1)).round().to(torch.int8)
        else:
            found[name] = difference.to(torch.float16)
    return found


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.lora_A.weight": torch.randn(2, 3, generator=generator),
        "layer.lora_B.weight": torch.randn(4, 2, generator=generator),
        "layer.weight": torch.randn(4, 3, generator=generator),
        "other": torch.randn(5, generator=generator),
        "norm.running_mean": torch.randn(2, generator=generator),
        "steps": torch.tensor(seed),
    }


MODEL, BEFORE = draw(1), draw(2)
MANIFEST = {name: TensorSpec(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in MODEL.items()}


def run(folder: Path, found: Aggregation, precision: UpdatePrecision, tensors: TensorSelection) -> bool:
    """Aggregates two rounds, and returns whether the model goes with the rule."""
    try:
        found.rule.check_model(MANIFEST, tensors)
    except (AggregationIncompatible, FieldInvalid):
        return False
    count = max(7, found.min_updates) if found.buffering is None else found.buffering.size
    trained = tensors.trained(MANIFEST)
    for stages in (found, *found.shadows):
        training = Rounds(folder, stages, Transport(precision=precision), tensors, expected=float(count))
        training.population = count
        if found.buffering is not None:
            base, staleness = training.write(BEFORE), found.buffering.factor(2)
            origin = UpdateOrigin(base, staleness, found.buffering.replaces_model)
            training.origins = (UpdateOrigin(),) * (count // 2) + (origin,) * (count - count // 2)
        for _ in range(2):
            updates = []
            for number in range(count):
                start = BEFORE if training.origins and training.origins[number].base else MODEL
                update = {name: tensor for name, tensor in draw(10 + number).items() if name in trained}
                user = TRUSTED_ID if number == 0 else f"site {number}"
                updates.append(Sent(sent(start, update, precision), number + 1, user, number + 1, 0.5))
            made = training.aggregate({name: tensor.clone() for name, tensor in MODEL.items()}, updates)
            expected = {name: (MODEL[name].dtype, tuple(MODEL[name].shape)) for name in trained}
            if isinstance(stages.rule, PartialSum):
                expected = {name: (torch.float64, (*shape, 2)) for name, (_, shape) in expected.items()}
            assert {name: (one.dtype, tuple(one.shape)) for name, one in made.items() if name in trained} == expected
            assert all(bool(torch.isfinite(one.float()).all()) for one in made.values())
            assert len(training.facts) == count
    return True


def test_stages_go_together_or_are_refused(tmp_path: Path) -> None:
    accepted: dict[str, list[Aggregation]] = {}
    for message in combinations():
        found = read(message)
        if found is not None:
            accepted.setdefault(found.rule.name, []).append(found)
            assert messages.read(messages.write(replace(found, shadows=()))) == replace(found, shadows=())
            assert to_aggregation(from_aggregation(found)) == found
    assert accepted.keys() == STAGES["algorithm"].keys()
    random, ran = Random(5), set()
    for name, alone in accepted.items():
        for found in random.sample(alone, min(len(alone), AGGREGATED // len(accepted))):
            done = [run(tmp_path, found, random.choice(PRECISIONS), tensors) for tensors in SELECTIONS]
            ran |= {name} if any(done) else set()
    assert ran == accepted.keys()
