"""Authenticates calls, and ends those under way whose credentials are revoked or expire."""

import asyncio
from collections.abc import Awaitable, Collection
from contextvars import ContextVar, Token
from datetime import datetime
from types import TracebackType
from typing import TypeVar

from fedround_server.coordinator.context import Context
from fedround_server.coordinator.identities import Identities
from fedround_server.domain.errors import FedroundError, TokenExpired
from fedround_server.domain.identity import Credentials, caller_of
from fedround_server.domain.token import LIVE_TOKENS
from fedround_server.domain.user import User


class AdmittedCall:
    """A call under way, and the context that it runs in.

    Thousands are in progress at the same time: a generator would take five times the memory.

    Attributes:
        credentials: Those that it was admitted with.
        scope: Ends the call when it is rescheduled to the present.
        error: What the call is to end with; None for an expired token.
    """

    __slots__ = ("_access", "_reset", "_user_id", "credentials", "error", "scope")

    def __init__(self, access: "Access", credentials: Credentials) -> None:
        self._access = access
        self.credentials = credentials
        self.error: FedroundError | None = None

    async def __aenter__(self) -> User:
        user, self.scope = await self._access.begin(self)
        self._user_id = user.user_id
        self._reset: Token[AdmittedCall] = _current.set(self)
        await self.scope.__aenter__()
        return user

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.scope.__aexit__(kind, error, trace)
        except TimeoutError as expired:
            error = expired
        finally:
            _current.reset(self._reset)
            self._access.end(self, self._user_id)
        if isinstance(error, TimeoutError) and self.scope.expired():
            raise self.error or TokenExpired from None


R = TypeVar("R")
_current: ContextVar[AdmittedCall] = ContextVar("call")


class Access:
    """The authenticated calls under way, and when tokens were last used."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._calls: dict[str, set[AdmittedCall]] = {}
        self._identities = Identities(
            lambda credentials: context.store.credentials.identify(credentials),
            is_fresh=lambda: context.store.is_fresh,
        )
        self._last_uses: dict[str, dict[str, datetime]] = {}

    def last_use(self, user_id: str, token_hash: str) -> datetime | None:
        """Returns when a token was last used for a call, since the start of the server."""
        return self._last_uses.get(user_id, {}).get(token_hash)

    def latest_token(self, user_id: str) -> str | None:
        """Returns the hash of the token that a user used last, since the start of the server."""
        return next(reversed(self._last_uses.get(user_id, {})), None)

    def admit(self, credentials: Credentials) -> AdmittedCall:
        """Returns a context that authenticates the caller and yields it.

        It ends with an error when the credentials are revoked or expire.

        Raises:
            Unauthenticated: The credentials are not, or no longer, those of a user.
        """
        return AdmittedCall(self, credentials)

    async def begin(self, call: AdmittedCall) -> tuple[User, asyncio.Timeout]:
        """Authenticates a call, and counts it as under way; returns its user and what ends it."""
        credentials = call.credentials
        user, until = await self._identify(credentials)
        now = self._context.clock.now()
        if credentials.token_hash is not None:
            self._record_use(user.user_id, credentials.token_hash, now)
        self._context.presence.begin_call(user.user_id, now)
        self._calls.setdefault(user.user_id, set()).add(call)
        return user, asyncio.timeout(self._seconds(until))

    def end(self, call: AdmittedCall, user_id: str) -> None:
        """Records that a call of a user has ended."""
        self._context.presence.end_call(user_id, self._context.clock.now())
        calls = self._calls[user_id]
        calls.discard(call)
        if not calls:
            del self._calls[user_id]

    async def change(self, work: Awaitable[R], user_id: str | None = None) -> R:
        """Awaits a change of users or credentials in the database, which all calls that begin after it see.

        To be shielded from cancellation, or the commit could come after what is done here.

        Args:
            work: Makes the change.
            user_id: Whose calls under way to end if their credentials are no longer valid; None to end no calls. The
                call that made the change is spared: it has a response to send.
        """
        try:
            result = await work
        finally:
            # After an error, too: the database may have committed it all the same.
            self._identities.forget_all()
        if user_id is not None:
            await self._recheck(user_id)
        return result

    def forget_callers(self) -> None:
        """Looks all callers up again: another replica has changed credentials."""
        self._identities.forget_all()

    async def learn(self, user_ids: Collection[str] | None) -> None:
        """Ends calls that other replicas have made invalid, after `forget_callers`.

        Args:
            user_ids: Whose calls under way to end if their credentials are no longer valid; None for those of all.
        """
        for user_id in list(self._calls) if user_ids is None else user_ids:
            await self._recheck(user_id)

    def forget(self, user_id: str) -> None:
        """Forgets when a user's tokens were used."""
        self._last_uses.pop(user_id, None)

    async def _recheck(self, user_id: str) -> None:
        """Ends the calls of a user whose credentials are no longer valid, but for the call that asks."""
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

    def _record_use(self, user_id: str, token_hash: str, now: datetime) -> None:
        """Records the use of a token, which becomes the last one of the user's."""
        uses = self._last_uses.setdefault(user_id, {})
        uses.pop(token_hash, None)
        uses[token_hash] = now
        if len(uses) > LIVE_TOKENS:
            del uses[next(iter(uses))]

    async def _identify(self, credentials: Credentials) -> tuple[User, datetime | None]:
        """Returns the user that credentials belong to, and when they expire."""
        known = await self._identities.find(credentials)
        user = caller_of(credentials, known, self._context.clock.now())
        return user, None if known.token is None else known.token.expire_time

    def _seconds(self, until: datetime | None) -> float | None:
        if until is None:
            return None
        return (until - self._context.clock.now()).total_seconds()
