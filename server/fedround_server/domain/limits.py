"""The limits that the use cases enforce, with their defaults; most of them are settings of the same name."""

from dataclasses import dataclass
from datetime import timedelta


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


@dataclass(frozen=True, slots=True)
class Limits(Quotas):
    """Limits on files, predictions, subscriptions and tokens.

    Attributes:
        max_model_bytes: Size of a model or update file.
        max_unfinished_bytes_per_user: Size of the unfinished uploads of one user.
        max_unfinished_bytes: Size of all unfinished uploads.
        min_free_bytes: Free space on the disk that new models leave; updates leave half of it.
        max_stored_bytes: Size of all stored files; new models are rejected beyond it.
        heartbeat: The longest silence of a subscription.
        max_check_ins_per_second: Calls of all participants that check in.
        check_in: The least time between two check-ins of a participant, on average.
        max_predictions: Predictions that wait or run at the same time.
        predict_seconds: Duration of a prediction.
        predict_bytes: Memory of a prediction and the operator's code, without torch's own.
        token_lifetime: Lifetime of tokens that are created without one; None for no end.
        max_token_lifetime: Longest lifetime of any token; None for no end.
    """

    max_model_bytes: int = 16 << 30
    max_unfinished_bytes_per_user: int = 64 << 30
    max_unfinished_bytes: int = 1 << 40
    min_free_bytes: int = 1 << 30
    max_stored_bytes: int = 1 << 44
    heartbeat: timedelta = timedelta(seconds=20)
    max_check_ins_per_second: float = 100.0
    check_in: timedelta = timedelta(seconds=10)
    max_predictions: int = 32
    predict_seconds: float = 60.0
    predict_bytes: int = 2 << 30
    token_lifetime: timedelta | None = None
    max_token_lifetime: timedelta | None = None


DEFAULTS = Limits()
