"""Authenticates the caller of an RPC and checks its role."""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from types import TracebackType

import structlog

from fedround_server.domain.audit import acting
from fedround_server.domain.errors import RoleRequired, TokenInvalid
from fedround_server.domain.identity import Credentials
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import User
from fedround_server.interceptors.wrapping import NO_CONTEXT, Call, ContextInterceptor, Metadata
from fedround_server.methods import METHODS

CERTIFICATE_NAME_KEYS = ("peer_dns", "peer_uri", "peer_email")
"""Where gRPC stores the names of a verified client certificate. IP addresses name machines, not users."""

KNOWN_SECONDS = 60.0
"""How long a token counts as known after a call."""
MAX_KNOWN = 1 << 16
"""How many tokens are remembered: those that were used last."""

_caller: ContextVar[User] = ContextVar("caller")


def caller() -> User:
    """Returns the authenticated user of the current call."""
    return _caller.get()


class AuthInterceptor(ContextInterceptor):
    """Finds the caller by its token or its client certificate, and checks that its role may call the method."""

    def __init__(
        self, admit: Callable[[Credentials], AbstractAsyncContextManager[User]], accept: Callable[[str], None]
    ) -> None:
        """Makes the interceptor.

        Args:
            admit: Authenticates credentials, and keeps the user admitted within its block.
            accept: Called with the peer of each call that is authenticated.
        """
        self._admit = admit
        self._accept = accept
        # When each token ceases to be a known one, in the order of the last calls.
        self._known: OrderedDict[str, float] = OrderedDict()

    def is_known(self, metadata: Metadata) -> bool:
        """Returns whether metadata have a token that was valid a short time ago."""
        try:
            token = _token(metadata)
        except TokenInvalid:
            return False
        return token is not None and self._known.get(hash_token(token), 0.0) > time.monotonic()

    def wrap_call(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Runs a call as the user that its credentials belong to."""
        roles = METHODS[method].roles
        if roles is None:
            return NO_CONTEXT
        credentials = _credentials(context)
        return _AuthenticatedCall(self, method, context.peer(), credentials.token_hash, self._admit(credentials))

    def accept(self, peer: str, token_hash: str | None) -> None:
        """Records an authenticated call."""
        self._accept(peer)
        if token_hash is not None:
            self._remember(token_hash)

    def _remember(self, token_hash: str) -> None:
        self._known[token_hash] = time.monotonic() + KNOWN_SECONDS
        self._known.move_to_end(token_hash)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


class _AuthenticatedCall:
    """Runs one call. Thousands are in progress at the same time: a generator would take five times the memory."""

    __slots__ = ("_admitted", "_interceptor", "_method", "_peer", "_reset", "_token_hash")

    def __init__(
        self,
        interceptor: AuthInterceptor,
        method: str,
        peer: str,
        token_hash: str | None,
        admitted: AbstractAsyncContextManager[User],
    ) -> None:
        self._interceptor = interceptor
        self._method = method
        self._peer = peer
        self._token_hash = token_hash
        self._admitted = admitted

    async def __aenter__(self) -> None:
        user = await self._admitted.__aenter__()
        self._interceptor.accept(self._peer, self._token_hash)
        structlog.contextvars.bind_contextvars(user_id=user.user_id)
        acting.set(user.user_id)
        roles = METHODS[self._method].roles or ()
        if user.role not in roles:
            await self._admitted.__aexit__(None, None, None)
            allowed = " or ".join(sorted(role.value for role in roles))
            raise RoleRequired(
                f"{self._method.rpartition('/')[2]} requires the role {allowed}, and yours is {user.role.value}:"
                " call it as a user with that role"
            )
        self._reset: Token[User] = _caller.set(user)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _caller.reset(self._reset)
        await self._admitted.__aexit__(kind, error, trace)


def _credentials(context: Call) -> Credentials:
    """Returns the credentials of a call: the hash of its token, and the names in its verified certificate."""
    token = _token(context.invocation_metadata())
    verified = context.auth_context() or {}
    names = {name.decode(errors="replace") for key in CERTIFICATE_NAME_KEYS for name in verified.get(key, ())}
    return Credentials(None if token is None else hash_token(token), tuple(sorted(names)))


def _token(pairs: Metadata) -> str | None:
    metadata = dict(pairs or ())
    plain = metadata.get("x-token")
    if plain:
        return _text(plain)
    header = metadata.get("authorization")
    if not header:
        return None
    scheme, _, token = _text(header).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenInvalid
    return token.strip()


def has_token(metadata: Metadata) -> bool:
    """Returns whether metadata have something that may be a token."""
    return any(name in ("x-token", "authorization") for name, _ in metadata or ())


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        raise TokenInvalid
    return value
