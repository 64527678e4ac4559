"""How much users may have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much of what is kept.

    Attributes:
        open_trainings_per_user: Trainings of one actor that are not ended.
        open_trainings: Trainings of all actors that are not ended.
        stored_bytes_per_user: Files of one user: of its models, and the updates of the trainings that it steers.
    """

    open_trainings_per_user: int = 1000
    open_trainings: int = 10_000
    stored_bytes_per_user: int = 1 << 40
