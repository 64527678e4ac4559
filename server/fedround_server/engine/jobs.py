"""Jobs of engines as plain data, which can be sent to any process or machine. Files are references, never paths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedround_server.blobs import FileRef, StagedBlob
from fedround_server.domain.aggregation import NO_STATE, Aggregation, AggregationState, UpdateFacts
from fedround_server.domain.model import BlobRef, Dtype, VersionFile
from fedround_server.domain.prediction import Array
from fedround_server.domain.swag_moments import SwagMoments
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.training import IntegerTensors
from fedround_server.domain.transport import FULL_TRANSPORT, Transport


class AggregationFailed(ValueError):
    """The updates have no aggregate that can be stored."""


class PredictionFault(ValueError):
    """Inputs, weights and architecture do not make a prediction; the arguments are `fault` and `message`."""

    @property
    def fault(self) -> str:
        """What has to be corrected: "inputs", "weights", "architecture", "dropout" or "memory"."""
        return str(self.args[0])

    @property
    def message(self) -> str:
        """What happened."""
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class SumCheck:
    """What a partial sum is the sum of.

    Attributes:
        dtypes: The types that the floating tensors have in the model.
        num_examples: Its number of examples, >= 1.
    """

    dtypes: Mapping[str, Dtype]
    num_examples: int


@dataclass(frozen=True, slots=True)
class CheckJob:
    """A file whose numbers are to be compared with those of models, or with what a partial sum may have.

    Attributes:
        file: The file, whose header has been accepted.
        origin: The model that a participant started from; None if no distance is asked for.
        prefix: What the file puts before the names of the origin's tensors.
        model: A model that has the file's tensors, whose NaN and Inf the file may have in the same places.
        block_sizes: How many numbers of the file share a scale, by the name of a tensor of int8 differences.
        beside: What precedes the names of tensors that neither the origin nor the model has; empty if there are none.
        sums: What the file is the sum of, if it is a partial sum; then there is neither an origin nor a model.
    """

    file: FileRef
    origin: VersionFile | None = None
    prefix: str = ""
    model: VersionFile | None = None
    block_sizes: Mapping[str, int] = field(default_factory=dict)
    beside: str = ""
    sums: SumCheck | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What is known of a file's numbers.

    Attributes:
        not_finite: The name of a tensor that contains NaN or Inf; then nothing else is known.
        problem: What is wrong with int8 differences or their scales, or with the components of a partial sum; then
            nothing else is known.
        norm: How far the file is from its origin: the L2 norm of the difference over all floating tensors; 0 without an
            origin.
    """

    not_finite: str | None = None
    problem: str | None = None
    norm: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateOrigin:
    """What an update u stands for: the model + factor * (u - base), in its trained floating tensors.

    Attributes:
        base: The version that it was trained from, and that the differences in its file are from; None for the model of
            the job.
        factor: >= 0.
        replaces_model: Whether it stands for the model + factor * (u - model) instead, in all floating tensors.
    """

    base: VersionFile | None = None
    factor: float = 1.0
    replaces_model: bool = False


@dataclass(frozen=True, slots=True)
class AggregationJob:
    """A round to aggregate.

    Attributes:
        model: The model that the round started from.
        updates: The updates, in canonical order.
        weights: num_examples of each update.
        aggregation: How.
        transport: In which precisions updates may have differences from the model.
        integers: How tensors of integers and booleans are aggregated.
        keep_non_finite: Whether NaN and Inf of the model stay as they are.
        tensors: Which tensors of the model the updates have. If these are not all of them, the result is a delta.
        user_ids: Whose the updates are.
        steps: Local steps of each; empty if the rule does not need them.
        losses: Loss of the model at each participant; empty if the rule does not need it.
        state: What the aggregation before has left.
        origins: What each update stands for; empty if all of them were trained from the model.
        population: How many participants could have been asked for an update, when the round was opened.
        expected: How many of them are asked on average.
        relays: Whether updates may be partial sums.
    """

    model: VersionFile
    updates: tuple[BlobRef, ...]
    weights: tuple[int, ...]
    aggregation: Aggregation | SwagMoments
    transport: Transport = FULL_TRANSPORT
    integers: IntegerTensors = IntegerTensors.HEAVIEST
    keep_non_finite: bool = False
    tensors: TensorSelection = ALL_TENSORS
    user_ids: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    state: AggregationState = NO_STATE
    origins: tuple[UpdateOrigin, ...] = ()
    population: int = 0
    expected: float = 0.0
    relays: bool = False


@dataclass(frozen=True, slots=True)
class StagedResult(StagedBlob):
    """The result of an aggregation, ready to be committed.

    Attributes:
        made: What it is once the file is committed: the file itself, or a base with the file as its delta.
        slots: The state for the next aggregation: staged files by slot.
        steps: How many aggregations have made each slot.
        report: What was found out about each update, in the order of the job.
        begin_time: When the worker began, in nanoseconds since 1970.
    """

    made: VersionFile
    slots: Mapping[str, StagedBlob] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    report: tuple[UpdateFacts, ...] = ()
    begin_time: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """An aggregation that was computed once more, whose file is not kept.

    Attributes:
        sha256: The digest of the whole file.
        distance: The L2 distance from the version that it was compared with, over all floating tensors; None if there
            was none.
    """

    sha256: str
    distance: float | None


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """Inputs, and what predicts.

    Attributes:
        architecture: The operator's factory, as package.module:callable.
        models: The model; for an ensemble all models that vote.
        posterior: The SWAG posterior.
        inputs: The inputs.
        method: Name of the uncertainty method.
        options: Its options.
        seed: Makes random numbers reproducible.
    """

    architecture: str
    models: tuple[VersionFile, ...]
    posterior: BlobRef | None
    inputs: Array
    method: str
    options: Mapping[str, Any]
    seed: int | None
