"""Callers of all kinds, the objects that they own, and the answers that they get."""

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from calls import TIMEOUT, model_file
from fedround.v1 import control_pb2, control_pb2_grpc, training_pb2, training_pb2_grpc, user_pb2, user_pb2_grpc
from fedround_server.domain.user import Role
from fedround_server.grpc_server import SERVICES
from fedround_server.methods import METHODS
from service.rules import ID, OK, PAUSE, RULES, UNKNOWN, Rule

RPCS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
OBJECTS = ("own", "foreign", "missing")
# The reason of the error for each state of a token; empty for the valid ones.
STATES = {
    "valid": "",
    "previous within its overlap": "",
    "previous after its overlap": "TOKEN_EXPIRED",
    "expired": "TOKEN_EXPIRED",
    "revoked": "TOKEN_INVALID",
    "malformed": "TOKEN_INVALID",
}
MOMENT, HOUR = {"nanos": 1000}, {"seconds": 3600}
ROTATIONS = {
    "previous within its overlap": {"overlap": HOUR},
    "previous after its overlap": {"overlap": MOMENT},
    "expired": {"lifetime": MOMENT},
}


@dataclass(frozen=True)
class Caller:
    """A caller and the objects that it owns; unauthenticated if it has no role."""

    role: Role | None = None
    state: str = "valid"
    removed: bool = False
    token: str = ""
    own: dict[str, str] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """The reason of the error that all calls get that need a token; empty for none."""
        if self.role is None:
            return "TOKEN_MISSING"
        return "TOKEN_INVALID" if self.removed else STATES[self.state]

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def __str__(self) -> str:
        role = "unauthenticated" if self.role is None else self.role.value
        return f"{role}{' (removed)' if self.removed else ''} with a token that is {self.state}"


@dataclass(frozen=True)
class Answer:
    """All that a caller can learn from a call, without the object's id."""

    reason: str
    code: grpc.StatusCode
    message: str = ""
    metadata: tuple[tuple[str, Any], ...] = ()


@dataclass
class Site:
    """A server, its first admin, and the objects of another user."""

    channel: grpc.aio.Channel
    admin: Caller
    foreign: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, caller: Caller, object_: str) -> Answer:
        """Calls once; of a stream the first message counts."""
        described, id_ = RPCS[method], self.id_of(method, caller, object_)
        request = ParseDict(_fill(RULES[method].request, id_), GetMessageClass(described.input_type)())
        shape = "_".join("stream" if s else "unary" for s in (described.client_streaming, described.server_streaming))
        stub = getattr(self.channel, shape)(method, type(request).SerializeToString)
        call = stub([request] if described.client_streaming else request, metadata=caller.metadata, timeout=TIMEOUT)
        try:
            if described.server_streaming:
                if await call.read() is not grpc.aio.EOF:
                    call.cancel()
                    return Answer(OK, grpc.StatusCode.OK)
            else:
                await call
        except grpc.RpcError:
            pass
        trailing = [(key, _without(value, id_)) for key, value in await call.trailing_metadata() or ()]
        return Answer(await _reason(call), await call.code(), _without(await call.details(), id_), tuple(trailing))

    def id_of(self, method: str, caller: Caller, object_: str) -> str:
        """The id of an object that a call is about."""
        kind = RULES[method].kind
        if not kind or object_ == "missing":
            return UNKNOWN
        return (caller.own if object_ == "own" else self.foreign)[kind]

    async def make(self, role: Role, state: str = "valid", *, removed: bool = False) -> Caller:
        """Makes a user with a token in a state, and with things of its own."""
        users = user_pb2_grpc.UserServiceStub(self.channel)
        named = f"{role.value} {state} {removed} {len(self.foreign)}"
        request = user_pb2.CreateUserRequest(name=named, role=f"ROLE_{role.value}")
        made = await users.CreateUser(request, metadata=self.admin.metadata)
        token, user_id = made.token, made.user.user_id
        metadata = Caller(role, token=token).metadata
        own = await self._things(user_id, role, metadata)
        if state in ROTATIONS:
            rotated = await users.RotateToken(user_pb2.RotateTokenRequest(**ROTATIONS[state]), metadata=metadata)
            token = rotated.token if state == "expired" else token
        elif state == "revoked":
            revoked = user_pb2.RevokeTokenRequest(token_id=made.user.tokens[0].token_id)
            await users.RevokeToken(revoked, metadata=metadata)
        elif state == "malformed":
            token = token[:-1]
        if removed:
            gone = user_pb2.RemoveUserRequest(user_id=user_id, force=True)
            await users.RemoveUser(gone, metadata=self.admin.metadata)
        return Caller(role, state, removed, token, own)

    async def _things(self, user_id: str, role: Role, metadata: list[tuple[str, str]]) -> dict[str, str]:
        """A running training that the user steers, or takes part in, with its model; and the user."""
        trainings = training_pb2_grpc.TrainingServiceStub(self.channel)
        actor = self.admin.metadata if role in (Role.CLIENT, Role.VIEWER) else metadata
        # The participant of an actor's training is the admin, and a viewer has none.
        participant = user_id if role is Role.CLIENT else self.admin.own["user"]
        spec = training_pb2.TrainingSpec(name="t", target_num_updates=1, client_ids=[participant])
        message = training_pb2.CreateTrainingRequest(spec=spec, chunk=model_file())
        made = (await trainings.CreateTraining([message], metadata=actor)).training
        start = training_pb2.StartTrainingRequest(training_id=made.training_id)
        await trainings.StartTraining(start, metadata=actor)
        pause = control_pb2.PauseTrainingRequest(training_id=made.training_id, request_id=PAUSE)
        await control_pb2_grpc.ControlServiceStub(self.channel).PauseTraining(pause, metadata=actor)
        return {"training": made.training_id, "model": made.model_id, "user": user_id}


def expected(method: str, caller: Caller, object_: str) -> str:
    """The reason that the tables say."""
    rule, roles = RULES[method], METHODS[method].roles
    if roles is None:
        return rule.owner
    if caller.error:
        return caller.error
    assert caller.role is not None
    if caller.role not in roles:
        return "ROLE_REQUIRED"
    if not rule.kind:
        return rule.owner
    if caller.role is Role.VIEWER and rule.kind != "user" and object_ == "foreign":
        return rule.owner
    if object_ == "own":
        return rule.participant if caller.role is Role.CLIENT and rule.kind != "user" else rule.owner
    return _about_others(rule, caller.role, object_)


def _about_others(rule: Rule, role: Role, object_: str) -> str:
    overseen = {Role.ADMIN: rule.admin, Role.ACTOR: rule.actor}.get(role, "")
    if not overseen:
        return rule.other
    # An invalid field is reported first.
    return overseen if object_ == "foreign" or overseen == "FIELD_INVALID" else "USER_NOT_FOUND"


def _fill(request: Any, id_: str) -> Any:
    """Puts an id where ID stands."""
    if isinstance(request, dict):
        return {key: _fill(value, id_) for key, value in request.items()}
    return id_ if request == ID else request


def _without(value: Any, id_: str) -> Any:
    if isinstance(value, bytes):
        return value.replace(id_.encode(), b"ID")
    return (value or "").replace(id_, "ID")


async def _reason(call: Any) -> str:
    """The reason of an error; the code if it is one of gRPC's own services."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return OK
    status = await rpc_status.aio.from_call(call)
    info = error_details_pb2.ErrorInfo()
    if status is not None and any(detail.Unpack(info) for detail in status.details):
        return str(info.reason)
    return str(code.name)
