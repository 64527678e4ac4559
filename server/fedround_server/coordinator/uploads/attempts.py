"""At most one attempt at each upload."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fedround_server.blobs import StagedRef, UploadRef
from fedround_server.domain.errors import FedroundError, UploadSuperseded


@dataclass(slots=True)
class _Attempt:
    """An attempt in progress.

    Attributes:
        user_id: The user that uploads.
        scope: Interrupts the attempt, wherever it waits.
        gone: Set when nothing of the attempt is in progress any more.
        error: The error that it was interrupted with.
    """

    user_id: str
    scope: asyncio.Timeout
    gone: asyncio.Event
    error: FedroundError | None = None

    async def interrupt(self, error: FedroundError) -> None:
        """Makes the attempt fail, and waits until it is gone."""
        # It may have ended while the caller waited for another one.
        if not self.gone.is_set() and not self.scope.expired():
            self.error = error
            self.scope.reschedule(asyncio.get_running_loop().time())
        await self.gone.wait()


class Attempts:
    """The attempts in progress."""

    def __init__(self) -> None:
        self._running: dict[UploadRef | StagedRef, _Attempt] = {}

    def __contains__(self, ref: UploadRef) -> bool:
        """Returns whether an attempt at an upload is in progress."""
        return ref in self._running

    def __len__(self) -> int:
        """Returns how many attempts are in progress."""
        return len(self._running)

    async def interrupt_user(self, user_id: str, error: FedroundError) -> None:
        """Makes all attempts of a user fail, and waits until they are gone."""
        for attempt in [attempt for attempt in self._running.values() if attempt.user_id == user_id]:
            await attempt.interrupt(error)

    @asynccontextmanager
    async def begin(self, user_id: str, ref: UploadRef | StagedRef) -> AsyncIterator[None]:
        """Makes the block the only attempt at an upload. An older one, whose connection is lost, is interrupted.

        Raises:
            UploadSuperseded: A newer attempt interrupted the block.
            TokenInvalid: The user was removed during the block.
        """
        while (older := self._running.get(ref)) is not None:
            await older.interrupt(UploadSuperseded(ref.upload_id if isinstance(ref, UploadRef) else ref.name))
        gone = asyncio.Event()
        try:
            async with asyncio.timeout(None) as scope:
                self._running[ref] = attempt = _Attempt(user_id, scope, gone)
                yield
        except TimeoutError:
            if attempt.error is None:
                raise
            raise attempt.error from None
        finally:
            del self._running[ref]
            gone.set()
