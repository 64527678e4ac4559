"""Updates: what participants submit in rounds that make a file."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeAlias, TypeGuard

from fedround_server.domain.aggregation import Rule
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import BlobRef, VersionFile

MetricValue: TypeAlias = float | str | list[float | str]
"""A number, which is averaged; a text; or a list of numbers, in which NaN and infinity are written as in str(float)."""

MAX_LOCAL_STEPS = 2**53
"""The largest number of local steps: up to it, all integers are exact in float64."""


def is_number(value: MetricValue) -> TypeGuard[float]:
    """Returns whether a metric is averaged."""
    return not isinstance(value, str | list)


class Submission(enum.Enum):
    """What members of a cohort submit, and the RPC (`method`) that submits it."""

    UPDATE = ("update", "SubmitUpdate")
    REPORT = ("report", "SubmitMetrics")

    def __init__(self, noun: str, method: str) -> None:
        self.noun = noun
        self.method = method


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """An update whose file is stored, to be accepted.

    Attributes:
        local_steps: Steps of the local optimizer that made it; None if it does not say.
        initial_loss: Loss of the round's model on the participant's data; None if it does not say.
        base_version: The version of the model that it was trained from; None for the one that `round` started from.
        num_updates: How many updates it is the exact sum of (a partial sum); 0 for an update of the user's own.
    """

    submission: ClassVar[Submission] = Submission.UPDATE
    training_id: str
    round: int
    user_id: str
    blob: BlobRef
    num_examples: int
    metrics: Mapping[str, MetricValue]
    local_steps: int | None = None
    initial_loss: float | None = None
    base_version: int | None = None
    num_updates: int = 0

    @property
    def is_sum(self) -> bool:
        """Whether it is a partial sum."""
        return self.num_updates > 0


def inputs_of(new: NewUpdate, rule: Rule) -> dict[str, Any]:
    """Returns what the rule of an aggregation needs to know of an update, by the names of the update's fields.

    An update without examples has no weight, and need not say anything.

    Args:
        new: The update.
        rule: The rule.

    Raises:
        FieldInvalid: The update does not say it, or it is out of range.
    """
    found: dict[str, Any] = {}
    if not new.num_examples:
        return found
    if rule.needs_steps:
        if not 1 <= (new.local_steps or 0) <= MAX_LOCAL_STEPS:
            raise FieldInvalid(
                "spec.local_steps",
                f"is {new.local_steps or 0}; {rule.name} needs the number of local optimizer steps that made the"
                f" update, 1 to {MAX_LOCAL_STEPS}",
            )
        found["local_steps"] = new.local_steps
    if rule.needs_loss:
        loss = new.initial_loss
        if loss is None or not math.isfinite(loss) or loss < 0:
            raise FieldInvalid(
                "spec.initial_loss",
                f"is {'not set' if loss is None else loss}; {rule.name} needs the loss of the round's model on the"
                " participant's data before training, finite and >= 0",
            )
        found["initial_loss"] = loss
    return found


@dataclass(frozen=True, slots=True)
class NormBound:
    """A limit of the distance between an update and the model that its participant started from.

    Attributes:
        limit: The largest L2 norm of the difference.
        origin: That model.
        prefix: What precedes the names of the model's tensors in the update.
    """

    limit: float
    origin: VersionFile
    prefix: str


@dataclass(frozen=True, slots=True)
class Update:
    """An accepted update.

    Attributes:
        local_steps: As in NewUpdate; None unless the rule of the aggregation needs it.
        initial_loss: The same.
        base_version: The version that it was trained from, with buffering; else None.
    """

    update_id: str
    training_id: str
    round: int
    user_id: str
    blob: BlobRef
    num_examples: int
    accept_time: datetime
    local_steps: int | None = None
    initial_loss: float | None = None
    base_version: int | None = None
