"""Who is signed in: sessions in the memory of this process, and the accounts that they belong to."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from fedround.v1.training_pb2 import Training
from fedround.v1.user_pb2 import ROLE_ACTOR, ROLE_ADMIN, ROLE_VIEWER, User
from fedround_client.client import Client
from fedround_client.dashboard.server_status import server_status
from fedround_client.dashboard.words import role_text
from fedround_client.errors import Unimplemented

MAX_SESSIONS = 1000
"""How many sessions there may be; after that, the one that was idle longest ends."""
MAX_ACCOUNT_SESSIONS = 200
"""How many of them one token has: signing in often does not end the sessions of others."""
SECRET_BYTES = 32
"""Random bytes of cookies and of the link of the operator."""


@dataclass(eq=False)
class Account:
    """A token with which at least one visitor is signed in.

    Attributes:
        token: The token. It never leaves this process, except in calls to the server.
        user: Whose it is.
        client: Calls the server with it.
        sees_server: Whether the server tells it what it is doing: older servers cannot.
        num_sessions: How many visitors are signed in with it.
        account_id: An id for what is kept about it, so that nothing else keeps the token in memory.
    """

    token: str = field(repr=False)
    user: User
    client: Client
    sees_server: bool = False
    num_sessions: int = 0
    account_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def role(self) -> str:
        """The role in words."""
        return role_text(self.user)

    @property
    def may_steer(self) -> bool:
        """Whether it may create and steer trainings."""
        return self.user.role in (ROLE_ACTOR, ROLE_ADMIN)

    @property
    def is_admin(self) -> bool:
        """Whether it may change users."""
        return self.user.role == ROLE_ADMIN

    def sees_rounds(self, training: Training) -> bool:
        """Returns whether the server shows it the rounds of a training, with their participants."""
        return self.user.role == ROLE_VIEWER or training.actor_id == self.user.user_id

    @property
    def may_list_users(self) -> bool:
        """Whether the server lists users for it."""
        return self.may_steer


@dataclass(eq=False)
class Session:
    """A visitor who is signed in.

    Attributes:
        account: The token that the visitor signed in with.
        created: When, by the clock of the sessions.
        last_used: When it last asked for a page.
        csrf: What every form of the visitor must contain.
        ended: Whether it is over.
    """

    account: Account
    created: float
    last_used: float
    csrf: str = field(repr=False)
    ended: bool = False


class Sessions:
    """The sessions. Thread-safe.

    A session is found by the SHA-256 of its cookie, so that the time of a look-up says nothing about those that
    exist.
    """

    def __init__(
        self,
        open_client: Callable[[str], Client],
        *,
        idle_seconds: float,
        session_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """Creates an empty set of sessions.

        Args:
            open_client: Opens a client with a token.
            idle_seconds: After how many seconds without a page a session ends.
            session_seconds: After how many seconds a session ends in any case.
            clock: Returns the time in seconds; never goes back.
        """
        self._open_client = open_client
        self._idle_seconds = idle_seconds
        self._session_seconds = session_seconds
        self._clock = clock
        self._key = secrets.token_bytes(SECRET_BYTES)
        self._sessions: dict[bytes, Session] = {}
        self._accounts: dict[bytes, Account] = {}
        self._lock = threading.Lock()

    def sign_in(self, token: str) -> str:
        """Asks the server whose token it is, and returns the cookie of a new session.

        Raises:
            FedroundError: The server does not accept the token, or cannot be reached.
        """
        client = self._open_client(token)
        try:
            user = client.myself()
            sees_server = user.role in (ROLE_ADMIN, ROLE_VIEWER) and _tells_status(client)
        except BaseException:
            client.close()
            raise
        cookie = secrets.token_urlsafe(SECRET_BYTES)
        now, digest = self._clock(), _digest(token)
        with self._lock:
            account = self._accounts.setdefault(digest, Account(token, user, client, sees_server))
            account.user = user
            account.num_sessions += 1
            self._sessions[_digest(cookie)] = Session(account, now, now, self.form_key(cookie))
            by_use = sorted(self._sessions.values(), key=lambda one: one.last_used)
            own = [one for one in by_use if one.account is account]
            # One sign-in makes at most one superfluous.
            superfluous = own[:-MAX_ACCOUNT_SESSIONS] or by_use[:-MAX_SESSIONS]
        if account.client is not client:
            client.close()
        for session in superfluous:
            self.end(session)
        return cookie

    def form_key(self, cookie: str) -> str:
        """Returns what forms must contain that are sent with a cookie; another page knows neither of the two."""
        return hmac.new(self._key, cookie.encode(), hashlib.sha256).hexdigest()

    def find(self, cookie: str | None, *, is_used: bool = True) -> Session | None:
        """Returns the session of a cookie, unless there is none, or it has expired.

        Args:
            cookie: The cookie; None if the request has none.
            is_used: Whether the visitor asked for something. False for what pages do by themselves.
        """
        if not cookie:
            return None
        with self._lock:
            session = self._sessions.get(_digest(cookie))
        if session is None or not self.is_alive(session):
            return None
        if is_used:
            session.last_used = self._clock()
        return session

    def is_alive(self, session: Session) -> bool:
        """Returns whether a session has not ended; ends it if it has expired."""
        now = self._clock()
        is_idle = now - session.last_used >= self._idle_seconds
        if not session.ended and (is_idle or now - session.created >= self._session_seconds):
            self.end(session)
        return not session.ended

    def end(self, session: Session) -> None:
        """Ends a session; with the last one of a token, the token is forgotten."""
        with self._lock:
            if session.ended:
                return
            session.ended = True
            self._sessions = {key: one for key, one in self._sessions.items() if one is not session}
            account = session.account
            account.num_sessions -= 1
            is_last = not account.num_sessions
            if is_last:
                self._accounts = {key: one for key, one in self._accounts.items() if one is not account}
        if is_last:
            account.client.close()

    def end_account(self, account: Account) -> None:
        """Ends all sessions of a token, which the server does not accept any more."""
        with self._lock:
            found = [session for session in self._sessions.values() if session.account is account]
        for session in found:
            self.end(session)

    def end_expired(self) -> None:
        """Ends the sessions that have expired, so that their tokens do not stay in memory."""
        with self._lock:
            found = list(self._sessions.values())
        for session in found:
            self.is_alive(session)

    def end_all(self) -> None:
        """Ends all sessions."""
        with self._lock:
            found = list(self._sessions.values())
        for session in found:
            self.end(session)


def _tells_status(client: Client) -> bool:
    try:
        server_status(client)
    except Unimplemented:
        return False
    return True


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
