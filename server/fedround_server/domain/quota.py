"""Quotas of users."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quotas:
    """Upper bounds of what is stored.

    Attributes:
        open_trainings_per_user: Trainings of one actor that have not ended.
        open_trainings: Trainings of all actors that have not ended.
        stored_bytes_per_user: Bytes of one user's files: its models, and the updates of the trainings that it steers.
    """

    open_trainings_per_user: int = 1000
    open_trainings: int = 10_000
    stored_bytes_per_user: int = 1 << 40
