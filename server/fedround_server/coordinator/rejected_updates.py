"""Counts rejected updates and reports, so that the actor sees them."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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

    @asynccontextmanager
    async def counted(self, training_id: str, number: int, user_id: str) -> AsyncIterator[None]:
        """Counts the error that the block ends with, if it rejects an update, and raises it again.

        The counters of the server count errors that do not concern the update, too.
        """
        try:
            yield
        except UploadOffset:
            # It tells the caller where to continue.
            raise
        except FedroundError as error:
            self._context.counters.updates_rejected[error.reason] += 1
            if isinstance(error, COUNTED):
                await self._context.tasks.run_shielded(self._count(training_id, number, user_id, error))
            raise

    async def _count(self, training_id: str, number: int, user_id: str, error: FedroundError) -> None:
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
