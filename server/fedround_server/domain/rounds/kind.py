"""What a kind of round is."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fedround_server.domain.adapters import AdapterPair, of_ranks_in
from fedround_server.domain.aggregation import Aggregation, Buffering
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.model import Manifest
from fedround_server.domain.policy import RoundPolicy
from fedround_server.domain.swag_moments import SwagMoments
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.training import IntegerTensors, TrainingSpec, TrainingState
from fedround_server.domain.transport import FULL_TRANSPORT, Transport
from fedround_server.domain.uncertainty import Swag
from fedround_server.domain.update import Submission


@dataclass(frozen=True, slots=True)
class ExpectedTensors:
    """The tensors of a submission.

    Attributes:
        manifest: Its tensors; a report has none.
        differences: The tensors of one that carries differences; None if that is not allowed.
        block_sizes: How many numbers of it share a scale, by the name of a tensor of int8 differences.
        prefix: What precedes the names of the model's tensors, for the distance from the model.
        private: Names of tensors that its participant must keep, for errors.
        adapters: Adapters of which one in full may have a lower rank.
        is_bounded: Whether its distance from the model has a limit: then adapters have the ranks of the model.
        beside: What precedes the names of tensors that the model has not, and that do not count for the distance; empty
            if there are none.
    """

    manifest: Manifest
    differences: Manifest | None = None
    block_sizes: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""
    private: frozenset[str] = frozenset()
    beside: str = ""
    adapters: tuple[AdapterPair, ...] = ()
    is_bounded: bool = False

    def for_ranks_in(self, manifest: Manifest) -> Manifest:
        """Returns the tensors of a submission in full, with the ranks of its adapters where they are acceptable."""
        return self.manifest if self.is_bounded else of_ranks_in(manifest, self.manifest, self.adapters)

    @property
    def notes(self) -> Mapping[str, str]:
        """What errors say about the ranks of adapters, by tensor."""
        note = (
            ". Adapters have the rank of the model, since spec.max_update_norm is a distance between equal shapes"
            if self.is_bounded
            else ". An adapter may have a lower rank, from 1 on, the same in lora_A and lora_B, if the update has all"
            " tensors in full"
        )
        return dict.fromkeys((name for pair in self.adapters for name in pair.names), note)

    def scaled(self, manifest: Manifest) -> Mapping[str, int]:
        """Returns the block sizes of the int8 differences that an accepted submission with these tensors has."""
        return self.block_sizes if manifest == self.differences else {}


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """What a round tells its cohort, beside what every round does; `RoundStarted` describes the fields."""

    local_rounds: int = 1
    assigned: bool = False
    swag: Swag | None = None
    transport: Transport = FULL_TRANSPORT


@dataclass(frozen=True, slots=True)
class Computation:
    """What makes one file of a round's updates.

    Attributes:
        aggregation: How.
        transport: In which precisions updates may carry differences from the model.
        integers: How tensors of integers and booleans are aggregated.
        keep_non_finite: Whether NaN and Inf of the model stay as they are.
        tensors: Which tensors updates have; the result inherits the others.
        cohort: Who takes part; None for all participants.
        relays: Whether updates may be partial sums.
    """

    aggregation: Aggregation | SwagMoments
    transport: Transport = FULL_TRANSPORT
    integers: IntegerTensors = IntegerTensors.HEAVIEST
    keep_non_finite: bool = False
    tensors: TensorSelection = ALL_TENSORS
    cohort: Cohort | None = None
    relays: bool = False

    def expected(self, population: int) -> float:
        """Returns how many participants are asked on average, of so many that could be."""
        return population if self.cohort is None else self.cohort.expected(population)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The file is the next version of the model."""


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """The file is an artifact of the present version; kind and details are those of `Artifact`."""

    kind: str
    details: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics are those of the present version; there is no file."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Each participant goes on with another one's update; there is no file.

    Attributes:
        draw: Returns for each of some participants, in canonical order, whose update it goes on with.
    """

    draw: Callable[[Sequence[str]], Mapping[str, str]]


Outcome: TypeAlias = NewVersion | NewArtifact | Evaluation | Assignment


class Sequel(enum.Enum):
    """When rounds of a kind are due."""

    NEXT_VERSION = "NEXT_VERSION"
    """When another version is to be made."""
    PRESENT_VERSION = "PRESENT_VERSION"
    """After a version was made, before the next one."""


class RoundKind(Protocol):
    """A kind of round: all that distinguishes it. To add one, write its file and its line in the registry.

    Attributes:
        name: UPPER_SNAKE; kept in the database.
        public_name: The name that clients see, a value of the enum RoundKind in the protos.
        submission: What members of the cohort submit.
        sequel: When it is due.
        training_state: The state of a training while such a round is open.
    """

    name: str
    public_name: str
    submission: Submission = Submission.UPDATE
    sequel: Sequel = Sequel.PRESENT_VERSION
    training_state: TrainingState = TrainingState.ONGOING

    def is_due(self, spec: TrainingSpec, model_version: int, *, last: bool) -> bool:
        """Returns whether a training has such a round at a version of its model (`last`: it makes no more versions)."""

    def check(self, spec: TrainingSpec, model: Manifest) -> None:
        """Checks that a training can have its rounds of this kind.

        Raises:
            FieldInvalid: It cannot, with this model.
        """
        return

    def request(self, spec: TrainingSpec, step: int) -> RoundRequest:
        """Returns what a round tells its cohort.

        Args:
            spec: What to train.
            step: Rounds since the last version in which models changed hands.
        """
        return RoundRequest()

    def policy(self, spec: TrainingSpec) -> RoundPolicy:
        """Returns when a round closes, and whom it waits for."""
        return spec.round_policy

    def buffering(self, spec: TrainingSpec) -> Buffering | None:
        """Returns which updates a round takes; None for those that started from its version."""
        return None

    def cohort(self, spec: TrainingSpec) -> Cohort | None:
        """Returns who takes part in a round; None for all participants."""
        return spec.cohort

    def tensors(self, spec: TrainingSpec, model: Manifest) -> ExpectedTensors:
        """Returns the tensors that a submission has."""
        return ExpectedTensors({})

    def required_metrics(self, spec: TrainingSpec) -> tuple[str, ...]:
        """Returns the names of the metrics that a submission must have."""
        return ()

    def computation(self, spec: TrainingSpec, step: int) -> Computation | None:
        """Returns what makes a file of the updates; None if the round makes none."""
        return None

    def stages(self, spec: TrainingSpec, step: int) -> Aggregation | None:
        """Returns the stages that the updates go through; None if the round makes no file, or makes it otherwise."""
        computation = self.computation(spec, step)
        found = None if computation is None else computation.aggregation
        return found if isinstance(found, Aggregation) else None

    def wanted(self, spec: TrainingSpec, step: int) -> int:
        """Returns how many participants must be connected before a pending round opens."""
        cohort, stages = self.cohort(spec), self.stages(spec, step)
        if cohort is None:
            return 1
        return max(1, cohort.min_available, stages.min_updates if stages is not None and cohort.available_only else 1)

    def outcome(self, spec: TrainingSpec, number: int, step: int, num_updates: int) -> Outcome:
        """Returns what a round that is done brings.

        Args:
            spec: What to train.
            number: The round.
            step: Rounds since the last version in which models changed hands.
            num_updates: How many submissions counted.
        """
