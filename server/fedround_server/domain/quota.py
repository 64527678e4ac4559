"""Quotas of what users keep on the server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas that the store enforces.

    Attributes:
        max_open_trainings_per_user: Trainings of one actor that have not ended.
        max_open_trainings: Trainings of all actors that have not ended.
        max_stored_bytes_per_user: Size of one user's files: of its models, and the updates of its trainings.
    """

    max_open_trainings_per_user: int = 1000
    max_open_trainings: int = 10_000
    max_stored_bytes_per_user: int = 1 << 40
