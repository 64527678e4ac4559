"""Authenticates calls, and ends those under way whose credentials are revoked or expire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from fedround_server.coordinator.context import Context
from fedround_server.domain.errors import FedroundError, TokenExpired
from fedround_server.domain.identity import Credentials, caller_of
from fedround_server.domain.token import LIVE_TOKENS
from fedround_server.domain.user import User


@dataclass(eq=False, slots=True)
class _Call:
    """A call under way.

    Attributes:
        scope: Ends the call when it is rescheduled to the present.
        error: What the call is to end with; None for an expired token.
    """

    credentials: Credentials
    scope: asyncio.Timeout
    error: FedroundError | None = None


_current: ContextVar[_Call] = ContextVar("call")


class Access:
    """The authenticated calls under way, and when tokens were last used."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._calls: dict[str, set[_Call]] = {}
        self._changes = 0
        self._last_uses: dict[str, dict[str, datetime]] = {}

    def last_use(self, user_id: str, token_hash: str) -> datetime | None:
        """Returns when a token was last used for a call, since the start of the server."""
        return self._last_uses.get(user_id, {}).get(token_hash)

    def latest_token(self, user_id: str) -> str | None:
        """Returns the hash of the token that a user used last, since the start of the server."""
        return next(reversed(self._last_uses.get(user_id, {})), None)

    @asynccontextmanager
    async def admit(self, credentials: Credentials) -> AsyncIterator[User]:
        """Authenticates and yields the caller; ends the block with an error when the credentials are revoked or expire.

        Raises:
            Unauthenticated: The credentials are not, or no longer, those of a user.
        """
        user, until = await self._identify(credentials)
        if credentials.token_hash is not None:
            self._record_use(user.user_id, credentials.token_hash)
        calls = self._calls.setdefault(user.user_id, set())
        scope = asyncio.timeout(self._seconds(until))
        call = _Call(credentials, scope)
        reset = _current.set(call)
        self._context.presence.begin_call(user.user_id, self._context.clock.now())
        try:
            async with scope:
                calls.add(call)
                yield user
        except TimeoutError:
            if not scope.expired():
                raise
            raise call.error or TokenExpired from None
        finally:
            _current.reset(reset)
            self._context.presence.end_call(user.user_id, self._context.clock.now())
            calls.discard(call)
            if not calls and self._calls.get(user.user_id) is calls:
                del self._calls[user.user_id]

    async def recheck(self, user_id: str) -> None:
        """Ends the calls of a user whose credentials are no longer valid; to be awaited after each commit about them.

        The call that made the change is spared: it has a response to send.
        """
        self._changes += 1
        own = _current.get(None)
        # Most users make all their calls with the same credentials.
        for credentials in {call.credentials for call in self._calls.get(user_id, ()) if call is not own}:
            reason: FedroundError | None = None
            try:
                _, until = await self._identify(credentials)
                seconds = self._seconds(until)
            except FedroundError as error:
                reason, seconds = error, 0.0
            now = asyncio.get_running_loop().time()
            for call in self._calls.get(user_id, ()):
                if call.credentials == credentials and call is not own and not call.scope.expired():
                    call.error = reason
                    call.scope.reschedule(None if seconds is None else now + seconds)

    def forget(self, user_id: str) -> None:
        """Forgets when a user's tokens were used."""
        self._last_uses.pop(user_id, None)

    def _record_use(self, user_id: str, token_hash: str) -> None:
        """Records the use of a token, which becomes the last one of the user's."""
        uses = self._last_uses.setdefault(user_id, {})
        uses.pop(token_hash, None)
        uses[token_hash] = self._context.clock.now()
        if len(uses) > LIVE_TOKENS:
            del uses[next(iter(uses))]

    async def _identify(self, credentials: Credentials) -> tuple[User, datetime | None]:
        """Returns the user that credentials belong to, and when they expire; looks again after a commit meanwhile."""
        while True:
            changes = self._changes
            known = await self._context.store.credentials.identify(credentials)
            if changes == self._changes:
                user = caller_of(credentials, known, self._context.clock.now())
                return user, None if known.token is None else known.token.expire_time

    def _seconds(self, until: datetime | None) -> float | None:
        if until is None:
            return None
        return (until - self._context.clock.now()).total_seconds()
