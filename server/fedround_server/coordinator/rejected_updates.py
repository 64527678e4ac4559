"""Keeps count of what participants submit in vain, so that the actor sees it."""

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
# The others say nothing of what was submitted: the caller has no part in the training, or the server no room just now.
COUNTED = (AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, ModelTooLarge, PermissionDenied)


class RejectedUpdates:
    """What is done when something that was submitted is refused."""

    def __init__(self, context: Context) -> None:
        """Writes into the context's store."""
        self._context = context

    @asynccontextmanager
    async def counted(self, training_id: str, number: int, user_id: str) -> AsyncIterator[None]:
        """Counts a refusal that the block ends with; the block ends with it all the same."""
        try:
            yield
        except UploadOffset:
            # It only tells where to go on.
            raise
        except COUNTED as error:
            await self._context.tasks.run_shielded(self._note(training_id, number, user_id, error))
            raise

    async def _note(self, training_id: str, number: int, user_id: str, error: FedroundError) -> None:
        # The message may quote what was sent: PostgreSQL keeps no NUL, and nobody may read a token there.
        message = redact(error.message).encode(errors="replace").decode().replace("\0", " ")
        now = self._context.clock.now()
        try:
            await self._context.store.submissions.record_rejected(
                training_id, number, user_id, error.reason, message, now
            )
        except Unavailable as unavailable:
            log.warning("a refusal %s in training %s is not counted: %s", error.reason, training_id, unavailable)
