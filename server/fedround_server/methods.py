"""The RPCs that the server serves: who may call each, which limit counts it, and what draining does to it.

A method without an entry is not served: the server refuses to start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from fedround_server.domain.user import Role


class Limit(Enum):
    """A limit on the calls that are in progress at the same time; its value is the noun used in messages."""

    UPLOADS = "uploads"
    DOWNLOADS = "downloads"
    SUBSCRIPTIONS = "subscriptions"


class OnDrain(Enum):
    """What a server that is draining does with the calls of a method."""

    FINISH = "finish"
    """It accepts new calls and waits for those in progress."""
    REJECT = "reject"
    """It rejects new calls, which would be cut short, and waits for those in progress."""
    END = "end"
    """It ends the calls: they have no end of their own. Subscriptions are not among these: they end by themselves."""


@dataclass(frozen=True, slots=True)
class Method:
    """What the interceptors must know about an RPC.

    Attributes:
        roles: The roles that may call it; None if no token is needed. The rules about single objects (only the actor
            steers its training) come on top of this.
        limit: The limit that counts its calls, if any.
        on_drain: What happens to its calls when the server drains.
    """

    roles: frozenset[Role] | None
    limit: Limit | None = None
    on_drain: OnDrain = OnDrain.FINISH


UNAUTHENTICATED: None = None
ADMINS = frozenset({Role.ADMIN})
ACTORS = frozenset({Role.ADMIN, Role.ACTOR})
CLIENTS = frozenset({Role.ADMIN, Role.ACTOR, Role.CLIENT})
READERS = ACTORS | {Role.VIEWER}
"""Those that read what only the actor of a training may read."""
USERS = CLIENTS | {Role.VIEWER}
"""All. A viewer changes nothing but its own tokens."""
OPERATORS = frozenset({Role.ADMIN, Role.VIEWER})

METHODS: Mapping[str, Method] = {
    "/fedround.v1.UserService/CreateUser": Method(ADMINS),
    "/fedround.v1.UserService/CreateUsers": Method(ADMINS),
    "/fedround.v1.UserService/GetUser": Method(USERS),
    "/fedround.v1.UserService/GetUsers": Method(ACTORS),
    "/fedround.v1.UserService/GetMyself": Method(USERS),
    "/fedround.v1.UserService/RotateToken": Method(USERS),
    "/fedround.v1.UserService/RevokeToken": Method(USERS),
    "/fedround.v1.UserService/SetCertificateNames": Method(ADMINS),
    "/fedround.v1.UserService/UpdateUser": Method(ADMINS),
    "/fedround.v1.UserService/RemoveUser": Method(ADMINS),
    "/fedround.v1.TrainingService/CreateTraining": Method(ACTORS, Limit.UPLOADS, OnDrain.REJECT),
    "/fedround.v1.TrainingService/GetTraining": Method(USERS),
    "/fedround.v1.TrainingService/GetTrainings": Method(USERS),
    "/fedround.v1.TrainingService/RegisterClients": Method(CLIENTS),
    "/fedround.v1.TrainingService/RemoveClients": Method(CLIENTS),
    "/fedround.v1.TrainingService/RemoveTraining": Method(CLIENTS),
    # It would open a round whose participants have lost their subscriptions.
    "/fedround.v1.TrainingService/StartTraining": Method(CLIENTS, on_drain=OnDrain.REJECT),
    "/fedround.v1.ControlService/StopTraining": Method(CLIENTS),
    "/fedround.v1.ControlService/PauseTraining": Method(CLIENTS),
    # It would open a round whose participants have lost their subscriptions.
    "/fedround.v1.ControlService/ResumeTraining": Method(CLIENTS, on_drain=OnDrain.REJECT),
    "/fedround.v1.ControlService/UpdateConfig": Method(CLIENTS),
    "/fedround.v1.RoundService/Subscribe": Method(USERS, Limit.SUBSCRIPTIONS),
    # Whoever gets work from a server that is shutting down could not download the model.
    "/fedround.v1.RoundService/CheckIn": Method(CLIENTS, on_drain=OnDrain.REJECT),
    "/fedround.v1.RoundService/SubmitUpdate": Method(CLIENTS, Limit.UPLOADS, OnDrain.REJECT),
    "/fedround.v1.RoundService/GetUpload": Method(CLIENTS),
    "/fedround.v1.RoundService/SubmitMetrics": Method(CLIENTS),
    "/fedround.v1.RoundService/ReportFailure": Method(CLIENTS),
    "/fedround.v1.RoundService/GetRound": Method(USERS),
    "/fedround.v1.RoundService/GetRounds": Method(USERS),
    "/fedround.v1.RoundService/DownloadAssignedModel": Method(CLIENTS, Limit.DOWNLOADS, OnDrain.REJECT),
    "/fedround.v1.RoundService/DownloadControl": Method(CLIENTS, Limit.DOWNLOADS, OnDrain.REJECT),
    "/fedround.v1.ModelService/UploadModel": Method(ACTORS, Limit.UPLOADS, OnDrain.REJECT),
    "/fedround.v1.ModelService/GetModel": Method(USERS),
    "/fedround.v1.ModelService/GetModels": Method(CLIENTS),
    "/fedround.v1.ModelService/GetModelVersions": Method(USERS),
    "/fedround.v1.ModelService/TagModelVersion": Method(ACTORS),
    "/fedround.v1.ModelService/DownloadModel": Method(CLIENTS, Limit.DOWNLOADS, OnDrain.REJECT),
    "/fedround.v1.ModelService/RemoveModel": Method(ACTORS),
    "/fedround.v1.ModelService/GetMetrics": Method(USERS),
    "/fedround.v1.InferenceService/Predict": Method(CLIENTS, on_drain=OnDrain.REJECT),
    "/fedround.v1.AuditService/ReadAudit": Method(ADMINS, Limit.DOWNLOADS, OnDrain.REJECT),
    "/fedround.v1.AuditService/GetAuditHead": Method(ADMINS),
    "/fedround.v1.AuditService/GetContributions": Method(READERS),
    "/fedround.v1.AuditService/ReplayRound": Method(ACTORS, on_drain=OnDrain.REJECT),
    "/fedround.v1.AuditService/ReplayTraining": Method(ACTORS, Limit.DOWNLOADS, OnDrain.REJECT),
    "/fedround.v1.ServerService/GetServerStatus": Method(OPERATORS),
    "/fedround.v1.ServerService/CollectFiles": Method(ADMINS),
    "/grpc.health.v1.Health/Check": Method(UNAUTHENTICATED),
    "/grpc.health.v1.Health/List": Method(UNAUTHENTICATED),
    "/grpc.health.v1.Health/Watch": Method(UNAUTHENTICATED, on_drain=OnDrain.END),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Method(UNAUTHENTICATED, on_drain=OnDrain.END),
    "/grpc.channelz.v1.Channelz/GetTopChannels": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetServers": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetServer": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetServerSockets": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetChannel": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetSubchannel": Method(ADMINS),
    "/grpc.channelz.v1.Channelz/GetSocket": Method(ADMINS),
}
"""Every RPC by its full name."""


def check_methods(served: Iterable[str]) -> None:
    """Checks that every method that is to be served, given by its full name, has an entry in the table.

    Raises:
        RuntimeError: Some have none.
    """
    if missing := sorted(set(served) - METHODS.keys()):
        raise RuntimeError(f"it is not defined who may call {', '.join(missing)}: add an entry to methods.py")
