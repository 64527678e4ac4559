"""Counts rejected updates and reports, so that the actor sees them."""

import logging
from types import TracebackType

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    FedroundError,
    InvalidArgument,
    ModelTooLarge,
    PermissionDenied,
    Unavailable,
    UploadOffset,
)
from fedround_server.domain.token import redact

log = logging.getLogger(__name__)
# Other errors do not concern the update: the caller takes no part in the training, or the server has no room now.
COUNTED = (AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, ModelTooLarge, PermissionDenied)


class RejectedUpdates:
    """The counts of rejected updates and reports."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def counted(self, training_id: str, number: int, user_id: str) -> "_Counted":
        """Returns a context that counts the error that its block ends with, if it rejects an update.

        The counters of the server count errors that do not concern the update, too.
        """
        return _Counted(self, training_id, number, user_id)

    async def count(self, training_id: str, number: int, user_id: str, error: FedroundError) -> None:
        """Counts an error that rejects an update."""
        self._context.counters.updates_rejected[error.reason] += 1
        if isinstance(error, COUNTED):
            await self._context.tasks.run_shielded(self._record(training_id, number, user_id, error))

    async def _record(self, training_id: str, number: int, user_id: str, error: FedroundError) -> None:
        # The message may quote the request: PostgreSQL stores no NUL, and the actor must not see a token.
        message = redact(error.message).encode(errors="replace").decode().replace("\0", " ")
        now = self._context.clock.now()
        try:
            await self._context.store.submissions.record_rejected(
                training_id, number, user_id, error.reason, message, now
            )
        except Unavailable as unavailable:
            log.warning(
                "an update rejected with %s in training %s is not counted: %s", error.reason, training_id, unavailable
            )


class _Counted:
    """Counts the error of one submission. A generator would take some microseconds more of each."""

    __slots__ = ("_number", "_rejected", "_training_id", "_user_id")

    def __init__(self, rejected: RejectedUpdates, training_id: str, number: int, user_id: str) -> None:
        self._rejected = rejected
        self._training_id = training_id
        self._number = number
        self._user_id = user_id

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # UploadOffset tells the caller where to continue.
        if isinstance(error, FedroundError) and not isinstance(error, UploadOffset):
            await self._rejected.count(self._training_id, self._number, self._user_id, error)
