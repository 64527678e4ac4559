"""At most one attempt at each upload."""

import asyncio
from types import TracebackType

from fedround_server.blobs import StagedRef, UploadRef
from fedround_server.domain.errors import FedroundError, UploadSuperseded


class Attempt:
    """An attempt at an upload, which lasts as long as its `async with` block."""

    __slots__ = ("_error", "_gone", "_ref", "_running", "_scope", "user_id")

    def __init__(
        self, running: "dict[UploadRef | StagedRef, Attempt]", user_id: str, ref: UploadRef | StagedRef
    ) -> None:
        """Makes it one of those that are running when it begins."""
        self.user_id = user_id
        self._running = running
        self._ref = ref
        # Interrupts the attempt, wherever it waits.
        self._scope = asyncio.timeout(None)
        # Set when nothing of the attempt is in progress any more.
        self._gone = asyncio.Event()
        # What it was interrupted with.
        self._error: FedroundError | None = None

    async def __aenter__(self) -> None:
        ref = self._ref
        while (older := self._running.get(ref)) is not None:
            await older.interrupt(UploadSuperseded(ref.upload_id if isinstance(ref, UploadRef) else ref.name))
        self._running[ref] = self
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError as expired:
            error = expired
        finally:
            del self._running[self._ref]
            self._gone.set()
        if isinstance(error, TimeoutError) and self._error is not None:
            raise self._error from None

    async def interrupt(self, error: FedroundError) -> None:
        """Makes the attempt fail, and waits until it is gone."""
        # It may have ended while the caller waited for another one.
        if not self._gone.is_set() and not self._scope.expired():
            self._error = error
            self._scope.reschedule(asyncio.get_running_loop().time())
        await self._gone.wait()


class Attempts:
    """The attempts in progress."""

    def __init__(self) -> None:
        self._running: dict[UploadRef | StagedRef, Attempt] = {}

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

    def begin(self, user_id: str, ref: UploadRef | StagedRef) -> Attempt:
        """Returns a context whose block is the only attempt at an upload.

        An older one, whose connection is lost, is interrupted.

        Raises:
            UploadSuperseded: A newer attempt interrupted the block.
            TokenInvalid: The user was removed during the block.
        """
        return Attempt(self._running, user_id, ref)
