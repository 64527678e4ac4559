"""Who calls, and whether its role may. Deny by default: a method that the table lacks stops the start-up."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar

import structlog

from fedround_server.domain.audit import acting
from fedround_server.domain.errors import RoleRequired, TokenInvalid
from fedround_server.domain.identity import Credentials
from fedround_server.domain.token import hash_token
from fedround_server.domain.user import Role, User
from fedround_server.interceptors.wrapping import Call, ContextInterceptor

ADMINS = frozenset({Role.ADMIN})
ACTORS = frozenset({Role.ADMIN, Role.ACTOR})
EVERYBODY = frozenset(Role)
ANYBODY: None = None
"""Also callers without a token."""

PERMISSIONS: Mapping[str, frozenset[Role] | None] = {
    "/fedround.v1.UserService/CreateUser": ADMINS,
    "/fedround.v1.UserService/GetUser": EVERYBODY,
    "/fedround.v1.UserService/GetUsers": ACTORS,
    "/fedround.v1.UserService/GetMyself": EVERYBODY,
    "/fedround.v1.UserService/RotateToken": EVERYBODY,
    "/fedround.v1.UserService/RevokeToken": EVERYBODY,
    "/fedround.v1.UserService/SetCertificateNames": ADMINS,
    "/fedround.v1.UserService/RemoveUser": ADMINS,
    "/fedround.v1.TrainingService/CreateTraining": ACTORS,
    "/fedround.v1.TrainingService/GetTraining": EVERYBODY,
    "/fedround.v1.TrainingService/GetTrainings": EVERYBODY,
    "/fedround.v1.TrainingService/RegisterClients": EVERYBODY,
    "/fedround.v1.TrainingService/RemoveClients": EVERYBODY,
    "/fedround.v1.TrainingService/RemoveTraining": EVERYBODY,
    "/fedround.v1.TrainingService/StartTraining": EVERYBODY,
    "/fedround.v1.RoundService/Subscribe": EVERYBODY,
    "/fedround.v1.RoundService/SubmitUpdate": EVERYBODY,
    "/fedround.v1.RoundService/GetUpload": EVERYBODY,
    "/fedround.v1.RoundService/SubmitMetrics": EVERYBODY,
    "/fedround.v1.RoundService/GetRound": EVERYBODY,
    "/fedround.v1.RoundService/DownloadDealtModel": EVERYBODY,
    "/fedround.v1.ModelService/UploadModel": ACTORS,
    "/fedround.v1.ModelService/GetModel": EVERYBODY,
    "/fedround.v1.ModelService/GetModels": EVERYBODY,
    "/fedround.v1.ModelService/GetModelVersions": EVERYBODY,
    "/fedround.v1.ModelService/TagModelVersion": ACTORS,
    "/fedround.v1.ModelService/DownloadModel": EVERYBODY,
    "/fedround.v1.ModelService/RemoveModel": ACTORS,
    "/fedround.v1.ModelService/GetMetrics": EVERYBODY,
    "/fedround.v1.InferenceService/Predict": EVERYBODY,
    "/fedround.v1.AuditService/ReadAudit": ADMINS,
    "/fedround.v1.AuditService/GetAuditHead": ADMINS,
    "/fedround.v1.AuditService/GetContributions": ACTORS,
    "/grpc.health.v1.Health/Check": ANYBODY,
    "/grpc.health.v1.Health/List": ANYBODY,
    "/grpc.health.v1.Health/Watch": ANYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANYBODY,
    "/grpc.channelz.v1.Channelz/GetTopChannels": ADMINS,
    "/grpc.channelz.v1.Channelz/GetServers": ADMINS,
    "/grpc.channelz.v1.Channelz/GetServer": ADMINS,
    "/grpc.channelz.v1.Channelz/GetServerSockets": ADMINS,
    "/grpc.channelz.v1.Channelz/GetChannel": ADMINS,
    "/grpc.channelz.v1.Channelz/GetSubchannel": ADMINS,
    "/grpc.channelz.v1.Channelz/GetSocket": ADMINS,
}
"""Which roles may call what. Objects have rules of their own on top: only the actor steers its training."""

NAMES = ("peer_dns", "peer_uri", "peer_email")
"""Where gRPC keeps the names of a verified client certificate. Addresses name machines, not users."""

_caller: ContextVar[User] = ContextVar("caller")


def caller() -> User:
    """Returns the user whose call this is."""
    return _caller.get()


def check_permissions(methods: Iterable[str]) -> None:
    """Refuses to serve a method that nobody decided about.

    Args:
        methods: Full names of all methods that are to be served.

    Raises:
        RuntimeError: The permission table lacks some.
    """
    if undecided := sorted(set(methods) - PERMISSIONS.keys()):
        raise RuntimeError(f"nobody decided who may call {', '.join(undecided)}: add them to PERMISSIONS")


class AuthInterceptor(ContextInterceptor):
    """Finds the caller by its token or its certificate, and checks its role."""

    def __init__(self, admit: Callable[[Credentials], AbstractAsyncContextManager[User]]) -> None:
        """Uses what lets calls in for the time of a block."""
        self._admit = admit

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Lets known callers through whose role may call the method."""
        roles = PERMISSIONS[method]
        if roles is ANYBODY:
            yield
            return
        async with self._admit(_credentials(context)) as user:
            structlog.contextvars.bind_contextvars(user_id=user.user_id)
            acting.set(user.user_id)
            if user.role not in roles:
                allowed = " or ".join(sorted(role.value for role in roles))
                raise RoleRequired(f"{method.rpartition('/')[2]} wants the role {allowed}, yours is {user.role.value}")
            reset = _caller.set(user)
            try:
                yield
            finally:
                _caller.reset(reset)


def _credentials(context: Call) -> Credentials:
    """Reads what the call comes with; of the token nothing but the hash goes further."""
    token = _token(context)
    verified = context.auth_context() or {}
    names = {name.decode(errors="replace") for kind in NAMES for name in verified.get(kind, ())}
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
