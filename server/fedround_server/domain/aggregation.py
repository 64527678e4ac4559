"""What an aggregation is made of: clipping, mixing, rule, server optimizer. `fedround_server.aggregators` has them."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol

from fedround_server.domain.adapters import Adapters
from fedround_server.domain.cohort import Cohort
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.domain.privacy import Privacy
from fedround_server.domain.tensor_selection import TensorSelection

BUFFERS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Globs of the tensors that a module's forward pass changes, not an optimizer: those of normalization layers."""

COUNTER = "num_batches_tracked"
"""BatchNorm counts its batches; the count of the update that was trained most is the meaningful one."""

STEPS = "steps"
"""The detail of an artifact that says how many aggregations have made a state."""
KEPT = "aggregate"
"""The slot of a rule that sees the difference which the round before has made."""


def is_counter(name: str) -> bool:
    """Returns whether an integer tensor gets its maximum."""
    return name.endswith(COUNTER)


class OptionInvalid(ValueError):
    """An option of an aggregation has a value that it cannot have; the arguments are its name and what is wrong."""

    @property
    def option(self) -> str:
        """The name of the option."""
        return str(self.args[0])

    @property
    def problem(self) -> str:
        """Its value, and what it must be."""
        return str(self.args[1])


class Stage(Protocol):
    """One stage of an aggregation; its options are the fields of a dataclass.

    Attributes:
        name: Its name in the protos and in the database.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Checks the options.

        Raises:
            OptionInvalid: One has a value that it cannot have.
        """


class Rule(Stage, Protocol):
    """How many updates become one.

    Attributes:
        needs_steps: Whether participants have to report their local steps.
        needs_loss: Whether participants have to report the loss of the model that they started from.
        keeps_aggregate: Whether it sees the difference that the round before has made.
        slots: Names of what it remembers of each element.
        control: The slot with its control variate: participants download it, and their updates have the change of
            theirs. None if it has no such thing.
        takes_optimizer: Whether a server optimizer may follow it.
        nests: Whether it sees sum(num_examples * update) and sum(num_examples) only: then partial sums may take the
            place of updates.
    """

    needs_steps: ClassVar[bool]
    needs_loss: ClassVar[bool]
    keeps_aggregate: ClassVar[bool]
    slots: ClassVar[tuple[str, ...]]
    control: ClassVar[str | None]
    takes_optimizer: ClassVar[bool]
    nests: ClassVar[bool]

    def min_updates(self) -> int:
        """Returns how many updates it needs, with these options."""

    def required_users(self) -> tuple[str, ...]:
        """Returns whose updates it needs in each round."""

    def for_participants(self) -> "Rule":
        """Returns it as participants see it: without the ids of others."""

    def check_model(self, model: Manifest, tensors: TensorSelection) -> None:
        """Checks that a model, of which some tensors are trained, fits it.

        Raises:
            AggregationIncompatible: It does not.
            FieldInvalid: An option does not fit it.
        """

    def adapters(self, model: Manifest, trained: Manifest) -> Adapters:
        """Returns what it does with the adapters of a model, of which some tensors are trained."""


class Clipper(Stage, Protocol):
    """Scales updates that are far from the model.

    Attributes:
        adapts: Whether the norm follows those of the updates, and belongs to the state of the aggregation.
    """

    adapts: ClassVar[bool]


class Mixer(Stage, Protocol):
    """Replaces updates by averages of some of them."""

    def updates_for(self, count: int) -> int:
        """Returns how many updates it needs to make so many averages."""


class Optimizer(Stage, Protocol):
    """Takes the aggregate for a gradient.

    Attributes:
        slots: Names of what it remembers of each element.
    """

    slots: ClassVar[tuple[str, ...]]


class Buffering(Stage, Protocol):
    """Makes a version of the updates that arrive, whatever version they started from.

    Attributes:
        replaces_model: Whether the model moves towards an update, and not by its difference from where it started.
    """

    replaces_model: ClassVar[bool]

    @property
    def size(self) -> int:
        """How many updates make a version."""

    @property
    def max_staleness(self) -> int:
        """How many versions may have been made since the one that an update started from."""

    def factor(self, staleness: int) -> float:
        """Returns how much an update counts when so many versions were made since the one that it started from."""


class DaisyChaining:
    """The options of a rule with rounds in which local models change hands before they are averaged.

    Attributes:
        daisy_period: Local rounds before the models change hands, >= 1.
        aggregation_period: Local rounds before they are averaged; a multiple of daisy_period.
        seed: Makes the assignments reproducible.
    """

    daisy_period: int
    aggregation_period: int
    seed: int


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How the updates of a round become the next version.

    Attributes:
        rule: Makes one of many.
        clipping: Scales each update before.
        mixing: Replaces the updates by averages of some of them, before the rule.
        server_optimizer: Takes what the rule has made for a gradient.
        buffering: Which updates a version is made of; None for those of a round in which all start from one version.
        buffers: Globs of tensors that are averaged whatever the rule, and never clipped, mixed or optimized.
        shadows: Other aggregations of the same updates, each with a model of its own.
        differential_privacy: Adds noise to the sum of the updates, before the server optimizer.
    """

    rule: Rule
    clipping: Clipper | None = None
    mixing: Mixer | None = None
    server_optimizer: Optimizer | None = None
    buffering: Buffering | None = None
    buffers: tuple[str, ...] = BUFFERS
    differential_privacy: Privacy | None = None
    shadows: "tuple[Aggregation, ...]" = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its rule and those of its shadows: participants send what any of them needs."""
        return (self.rule, *(shadow.rule for shadow in self.shadows))

    def for_participants(self) -> "Aggregation":
        """Returns it as participants see it: without the ids of others."""
        shadows = tuple(shadow.for_participants() for shadow in self.shadows)
        return replace(self, rule=self.rule.for_participants(), shadows=shadows)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the files of its state."""
        return (*self.large_slots, *self.small_slots)

    @property
    def large_slots(self) -> tuple[str, ...]:
        """The names of those with numbers for each element."""
        kept = () if self.kept_slot is None else (self.kept_slot,)
        return (*kept, *self.rule_slots.values(), *self.optimizer_slots.values())

    @property
    def small_slots(self) -> tuple[str, ...]:
        """The names of those whose size does not depend on the model."""
        return tuple(slot for slot in (self.norm_slot, self.key_slot) if slot is not None)

    @property
    def inherited_slots(self) -> tuple[str, ...]:
        """The names of those with which another training may go on: the secret of trees is not among them."""
        return tuple(slot for slot in self.slots if slot != self.key_slot)

    @property
    def key_slot(self) -> str | None:
        """The name of the file with the secret of the trees; None without."""
        return None if self.differential_privacy is None else self.differential_privacy.key_slot

    @property
    def norm_slot(self) -> str | None:
        """The name of the file with the norm of adaptive clipping; None without."""
        return f"{self.clipping.name}/norm" if self.clipping is not None and self.clipping.adapts else None

    def samples(self, cohort: Cohort | None) -> bool:
        """Returns whether each participant has to be drawn independently of the others."""
        privacy = self.differential_privacy
        return privacy is not None and not privacy.tree and cohort is not None and cohort.fraction is not None

    @property
    def kept_slot(self) -> str | None:
        """The name of the file with the difference that the round before has made; None if the rule does not see it."""
        return f"{self.rule.name}/{KEPT}" if self.rule.keeps_aggregate else None

    @property
    def rule_slots(self) -> Mapping[str, str]:
        """The names of the files of the rule, by its own names for its slots."""
        return {slot: f"{self.rule.name}/{slot}" for slot in self.rule.slots}

    @property
    def control_slot(self) -> str | None:
        """The name of the file with the rule's control variate; None if it has none."""
        return None if self.rule.control is None else self.rule_slots[self.rule.control]

    @property
    def optimizer_slots(self) -> Mapping[str, str]:
        """The names of the files of the server optimizer, by its own names for its slots."""
        optimizer = self.server_optimizer
        return {} if optimizer is None else {slot: f"{optimizer.name}/{slot}" for slot in optimizer.slots}

    @property
    def min_updates(self) -> int:
        """How many updates it needs."""
        wanted = self.rule.min_updates()
        return wanted if self.mixing is None else self.mixing.updates_for(wanted)

    @property
    def is_demanding(self) -> bool:
        """Whether some sets of updates have no aggregate."""
        return self.min_updates > 1 or bool(self.rule.required_users())

    def lack(self, user_ids: Collection[str], noun: str = "updates") -> str | None:
        """Returns what updates of some users lack for it, with the numbers; None if nothing.

        Args:
            user_ids: The users.
            noun: What they are, for the text.
        """
        if (shortage := self.shortage(len(user_ids), noun)) is not None:
            return shortage
        if set(self.rule.required_users()) - set(user_ids):
            return (
                f"{self.rule.name} needs the participant that it trusts, which is not among the {len(user_ids)} {noun}"
            )
        return None

    def shortage(self, count: int, noun: str = "updates") -> str | None:
        """Returns that a number of updates is too small, with the numbers; None if it is not."""
        return None if count >= self.min_updates else f"{self.demand} {noun}, and there are {count}"

    @property
    def demand(self) -> str:
        """What needs how many, as the beginning of a message."""
        mixed = "" if self.mixing is None else f" after {title(self.mixing)}"
        return f"{title(self.rule)}{mixed} needs {self.min_updates}"

    def changed(self, model: Manifest, trained: Manifest) -> Manifest:
        """Returns the tensors of a model that its versions do not share.

        Args:
            model: The model.
            trained: The tensors that updates have.
        """
        merged = self.rule.adapters(model, trained).merged
        return {name: spec for name, spec in model.items() if name in trained or name in merged} if merged else trained

    @property
    def stages(self) -> Mapping[str, Stage]:
        """The stages by the name of their field."""
        found = {
            "algorithm": self.rule,
            "clipping": self.clipping,
            "mixing": self.mixing,
            "server_optimizer": self.server_optimizer,
            "buffering": self.buffering,
            "differential_privacy": self.differential_privacy,
        }
        return {name: stage for name, stage in found.items() if stage is not None}


def title(stage: Stage) -> str:
    """Returns the name of a stage with its numeric options, for messages: those may be about participants."""
    options = [f"{name}={value:g}" for name, value in options_of(stage).items() if not isinstance(value, str)]
    return f"{stage.name}({', '.join(options)})" if options else stage.name


def options_of(stage: Stage) -> dict[str, Any]:
    """Returns the options of a stage by name."""
    return asdict(stage)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class AggregationState:
    """What an aggregation leaves for the next one.

    Attributes:
        slots: Files by name, such as "adam/m": safetensors files with the names and shapes of the tensors that are
            aggregated.
        steps: How many aggregations have made each of them.
    """

    slots: Mapping[str, BlobRef] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What the audit log says of it, by slot."""
        return {
            slot: {"sha256": blob.sha256, "size_bytes": blob.size_bytes, STEPS: self.steps[slot]}
            for slot, blob in self.slots.items()
        }


NO_STATE = AggregationState()


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What an aggregation has found out about an update; None where its rule did not look.

    Attributes:
        share: Its part of the aggregate, which is 1 for all together unless it was clipped; None if elements have
            different ones.
        norm: How far it is from the round's model (L2).
        cosine: The cosine of the angle between its difference from the model and that of the aggregate.
        distance_rank: Its place among all, from 1, by the sum of its squared distances to the others.
        scale: What clipping multiplied its difference by.
        selected: Whether the rule has selected it; None for rules that take all.
        staleness: With buffering, how many versions were made between the one that it started from and the round's.
    """

    share: float | None = None
    norm: float | None = None
    cosine: float | None = None
    distance_rank: int | None = None
    scale: float | None = None
    selected: bool | None = None
    staleness: int | None = None
