"""Updates: what participants submit in rounds that make a file."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, TypeAlias, TypeGuard

from fedround_server.domain.model import BlobRef, VersionFile

MetricValue: TypeAlias = float | str | list[float | str]
"""A number, which is averaged; a text; or a list of numbers, in which NaN and infinity are written as in str(float)."""


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
    """An update whose file is stored, to be accepted."""

    submission: ClassVar[Submission] = Submission.UPDATE
    training_id: str
    round: int
    user_id: str
    blob: BlobRef
    num_examples: int
    metrics: Mapping[str, MetricValue]


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
    """An accepted update."""

    update_id: str
    training_id: str
    round: int
    user_id: str
    blob: BlobRef
    num_examples: int
    accept_time: datetime
