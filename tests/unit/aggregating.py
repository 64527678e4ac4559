"""Runs aggregations on tensors in memory: files named by their digests, and the state from one round to the next."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedround_server.aggregators import STAGES
from fedround_server.aggregators.compatibility import check_compatible
from fedround_server.aggregators.differential_privacy import DifferentialPrivacy
from fedround_server.aggregators.fl_trust import FLTrust
from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState, UpdateFacts
from fedround_server.domain.control import CONTROL, control_tensors
from fedround_server.domain.errors import AggregationIncompatible
from fedround_server.domain.model import BlobRef, Dtype, TensorSpec
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.transport import FULL_TRANSPORT, Transport
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.computation import Spread
from fedround_server.engine.format.dtypes import TORCH_DTYPES
from fedround_server.engine.jobs import AggregationJob, UpdateOrigin
from unit.paths import Paths, at

Tensors = Mapping[str, Tensor]
TRUSTED = "site 0"
NUMBERS = count()
DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items() if not name.is_complex} | {torch.complex64: Dtype.C64}


@dataclass(frozen=True)
class Sent:
    """An update with what is sent along."""

    tensors: Tensors
    weight: int = 1
    user_id: str = TRUSTED
    steps: int = 1
    loss: float = 1.0
    control: Tensors | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Rounds:
    """Rounds of one training: each call begins from the state of the one before."""

    folder: Path
    aggregation: Aggregation
    transport: Transport = FULL_TRANSPORT
    tensors: TensorSelection = ALL_TENSORS
    threads: int = 1
    keep_non_finite: bool = False
    state: AggregationState = NO_STATE
    facts: tuple[UpdateFacts, ...] = ()
    population: int = 0
    expected: float = 0.0
    origins: tuple[UpdateOrigin, ...] = ()
    spread: Callable[[Paths, AggregationJob], Spread] | None = None
    relays: bool = False
    made: Path = Path()

    def write(self, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> BlobRef:
        data = safetensors.torch.save(dict(tensors), dict(metadata) if metadata else None)
        path = self.folder / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return at(path)

    def aggregate(self, model: Tensors, updates: Sequence[Sent]) -> dict[str, Tensor]:
        """Makes the next version, and checks that no file that was read has changed."""
        stored = self.write(model)
        refs = tuple(self.write(self._sent(model, update), update.metadata) for update in updates)
        number = next(NUMBERS)
        self.made = target = self.folder / f"version {number}"
        slots = {slot: self.folder / f"{slot.replace('/', ' ')} {number}" for slot in self.aggregation.slots}
        job = AggregationJob(
            stored,
            refs,
            tuple(update.weight for update in updates),
            self.aggregation,
            self.transport,
            keep_non_finite=self.keep_non_finite,
            tensors=self.tensors,
            user_ids=tuple(update.user_id for update in updates),
            steps=tuple(update.steps for update in updates) if self.aggregation.rule.needs_steps else (),
            losses=tuple(update.loss for update in updates) if self.aggregation.rule.needs_loss else (),
            state=self.state,
            population=self.population,
            expected=self.expected,
            origins=self.origins,
            relays=self.relays,
        )
        read = {Path(ref.sha256) for ref in (stored, *refs, *self.state.slots.values())}
        before = {path: path.read_bytes() for path in read}
        try:
            files = Paths(self.folder)
            spread = None if self.spread is None else self.spread(files, job)
            made = aggregate(files, job, target, slots, self.threads, spread)
        finally:
            assert {path: path.read_bytes() for path in read} == before
        self.facts = made.report
        self.state = AggregationState({slot: at(path) for slot, path in slots.items()}, made.steps)
        return safetensors.torch.load_file(target)

    def _sent(self, model: Tensors, update: Sent) -> Tensors:
        """What an update has: with a control variate, its change too, by default a sixteenth of the model."""
        manifest = {name: TensorSpec(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in model.items()}
        wanted = control_tensors(self.aggregation, self.tensors.trained(manifest))
        given = update.control or {
            name: _wide(tensor) / 16 for name, tensor in model.items() if CONTROL + name in wanted
        }
        kinds = {spec: dtype for dtype, spec in DTYPES.items()}
        return {
            **update.tensors,
            **{name: given[name[len(CONTROL) :]].to(kinds[spec.dtype]) for name, spec in wanted.items()},
        }

    def slot(self, name: str) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.state.slots[name].sha256)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.is_complex else tensor.double()


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()
    }


def stage(field_name: str, name: str, **options: object) -> Any:
    """A stage with its default options, or some others."""
    kind = STAGES[field_name][name]
    required = {FLTrust: TRUSTED, DifferentialPrivacy: 1.0}
    return kind(required[kind], **options) if kind in required else kind(**options)


def is_compatible(aggregation: Aggregation) -> bool:
    try:
        check_compatible(aggregation)
    except AggregationIncompatible:
        return False
    return True
