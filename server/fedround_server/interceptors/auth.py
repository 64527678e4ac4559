"""Authenticates the caller of an RPC and checks its role."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar

import structlog

from fedround_server.domain.audit import acting
from fedround_server.domain.errors import RoleRequired, TokenInvalid
from fedround_server.domain.identity import Credentials
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import User
from fedround_server.interceptors.wrapping import Call, ContextInterceptor
from fedround_server.methods import METHODS

CERTIFICATE_NAME_KEYS = ("peer_dns", "peer_uri", "peer_email")
"""Where gRPC stores the names of a verified client certificate. IP addresses name machines, not users."""

_caller: ContextVar[User] = ContextVar("caller")


def caller() -> User:
    """Returns the authenticated user of the current call."""
    return _caller.get()


class AuthInterceptor(ContextInterceptor):
    """Finds the caller by its token or its client certificate, and checks that its role may call the method."""

    def __init__(self, admit: Callable[[Credentials], AbstractAsyncContextManager[User]]) -> None:
        """Makes the interceptor; `admit` authenticates credentials, and keeps the user admitted within its block."""
        self._admit = admit

    @asynccontextmanager
    async def wrap_call(self, method: str, context: Call) -> AsyncIterator[None]:
        """Runs a call as the user that its credentials belong to."""
        roles = METHODS[method].roles
        if roles is None:
            yield
            return
        async with self._admit(_credentials(context)) as user:
            structlog.contextvars.bind_contextvars(user_id=user.user_id)
            acting.set(user.user_id)
            if user.role not in roles:
                allowed = " or ".join(sorted(role.value for role in roles))
                raise RoleRequired(
                    f"{method.rpartition('/')[2]} requires the role {allowed}, and yours is {user.role.value}:"
                    " call it as a user with that role"
                )
            reset = _caller.set(user)
            try:
                yield
            finally:
                _caller.reset(reset)


def _credentials(context: Call) -> Credentials:
    """Returns the credentials of a call: the hash of its token, and the names in its verified certificate."""
    token = _token(context)
    verified = context.auth_context() or {}
    names = {name.decode(errors="replace") for key in CERTIFICATE_NAME_KEYS for name in verified.get(key, ())}
    return Credentials(None if token is None else hash_token(token), tuple(sorted(names)))


def _token(context: Call) -> str | None:
    metadata = dict(context.invocation_metadata() or ())
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


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        raise TokenInvalid
    return value
