"""What each RPC answers about objects, as a table; methods.py says which roles may call it at all."""

from dataclasses import dataclass, field
from typing import Any

ID = "<the object's id>"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
PAUSE = "00000000-0000-4000-8000-000000000001"
OK = "OK"


@dataclass(frozen=True)
class Rule:
    """The reasons that an RPC answers with; `OK` for no error, and a status code for errors of gRPC's own services.

    Attributes:
        kind: The kind of object that the request names: training, model or user; empty for none that has an owner.
        request: The request; ID stands for the object's id. It changes nothing that another call depends on.
        owner: To the actor of a training, the owner of a model, the user itself; to a viewer about all trainings and
            models.
        participant: To a participant of the training, or of the one that trains the model.
        other: To all other users, about objects that exist and objects that do not.
        admin: To admins, about objects of other users; by default as to all others.
        actor: To actors, likewise.
    """

    kind: str = ""
    request: dict[str, Any] = field(default_factory=dict)
    owner: str = OK
    participant: str = ""
    other: str = ""
    admin: str = ""
    actor: str = ""


def training(owner: str, participant: str, other: str = "TRAINING_NOT_FOUND", **request: Any) -> Rule:
    return Rule("training", {"training_id": ID, **request}, owner, participant, other)


def model(owner: str, participant: str, other: str = "MODEL_NOT_FOUND", **request: Any) -> Rule:
    return Rule("model", {"model_id": ID, **request}, owner, participant, other)


def user(owner: str, other: str = "USER_NOT_FOUND", admin: str = OK, actor: str = "", **request: Any) -> Rule:
    return Rule("user", {"user_id": ID, **request}, owner, "", other, admin, actor)


UPDATE = {"training_id": ID, "round": 99, "num_examples": "1", "sha256": "0" * 64, "size_bytes": "1"}
CREATE = {"model_id": ID, "target_num_updates": 1}
INPUTS = {"dtype": "F32", "shape": ["1"], "data": "AAAAAA=="}
NONE = Rule()

RULES = {
    "/fedround.v1.UserService/CreateUser": Rule("", {"name": "admin", "role": "ROLE_CLIENT"}, "USER_EXISTS"),
    "/fedround.v1.UserService/CreateUsers": Rule(
        "", {"users": [{"name": "admin", "role": "ROLE_CLIENT"}]}, "USER_EXISTS"
    ),
    "/fedround.v1.UserService/GetUser": user(OK, actor=OK),
    "/fedround.v1.UserService/GetUsers": NONE,
    "/fedround.v1.UserService/GetMyself": NONE,
    # Longer than the server of the test allows.
    "/fedround.v1.UserService/RotateToken": user("FIELD_INVALID", "ROLE_REQUIRED", "FIELD_INVALID", lifetime="99999s"),
    "/fedround.v1.UserService/RevokeToken": user(
        "TOKEN_NOT_FOUND", "ROLE_REQUIRED", "TOKEN_NOT_FOUND", token_id="0" * 16
    ),
    "/fedround.v1.UserService/SetCertificateNames": user(OK),
    "/fedround.v1.UserService/UpdateUser": user(OK),
    # Each user of the test is the actor of a running training, or takes part in one.
    "/fedround.v1.UserService/RemoveUser": user("TRAINING_RUNNING", admin="TRAINING_RUNNING"),
    "/fedround.v1.TrainingService/CreateTraining": Rule(
        "model", {"spec": CREATE}, OK, "MODEL_NOT_FOUND", "MODEL_NOT_FOUND"
    ),
    "/fedround.v1.TrainingService/GetTraining": training(OK, OK),
    "/fedround.v1.TrainingService/GetTrainings": NONE,
    "/fedround.v1.TrainingService/RegisterClients": training("UNKNOWN_CLIENTS", "NOT_ACTOR", client_ids=[UNKNOWN]),
    "/fedround.v1.TrainingService/RemoveClients": training("UNKNOWN_CLIENTS", "NOT_ACTOR", client_ids=[UNKNOWN]),
    "/fedround.v1.TrainingService/RemoveTraining": training("TRAINING_RUNNING", "NOT_ACTOR"),
    "/fedround.v1.TrainingService/StartTraining": training("TRAINING_NOT_INITIAL", "NOT_ACTOR"),
    # Its trainings have an open round, and are paused by a request with this id.
    "/fedround.v1.ControlService/StopTraining": training(OK, "NOT_ACTOR"),
    "/fedround.v1.ControlService/PauseTraining": training("TRAINING_PAUSED", "NOT_ACTOR"),
    "/fedround.v1.ControlService/ResumeTraining": training("FIELD_INVALID", "NOT_ACTOR", request_id=PAUSE),
    "/fedround.v1.ControlService/UpdateConfig": training(
        "UNKNOWN_CLIENTS", "NOT_ACTOR", client_config={UNKNOWN: {"values": {"rate": {"double_value": 0.1}}}}
    ),
    "/fedround.v1.RoundService/Subscribe": training(OK, OK),
    "/fedround.v1.RoundService/CheckIn": training(OK, OK),
    # Here the actor is like any other user: it takes no part in its own training.
    "/fedround.v1.RoundService/SubmitUpdate": Rule(
        "training", {"spec": UPDATE}, "TRAINING_NOT_FOUND", "ROUND_NOT_OPEN", "TRAINING_NOT_FOUND"
    ),
    "/fedround.v1.RoundService/GetUpload": Rule("", {"upload_id": UNKNOWN}),
    "/fedround.v1.RoundService/SubmitMetrics": training(
        "TRAINING_NOT_FOUND", "ROUND_NOT_OPEN", round=99, num_examples="1"
    ),
    "/fedround.v1.RoundService/ReportFailure": training(
        "TRAINING_NOT_FOUND", "ROUND_NOT_OPEN", round=99, reason="TRAIN_FAILED"
    ),
    "/fedround.v1.RoundService/GetRound": training(OK, "NOT_ACTOR"),
    "/fedround.v1.RoundService/GetRounds": training(OK, "NOT_ACTOR"),
    "/fedround.v1.RoundService/DownloadAssignedModel": training("TRAINING_NOT_FOUND", "ROUND_NOT_FOUND", round=99),
    "/fedround.v1.RoundService/DownloadControl": training("TRAINING_NOT_FOUND", "ROUND_NOT_FOUND", round=99),
    "/fedround.v1.ModelService/UploadModel": Rule("", {"spec": {"name": "m"}}, "FIELD_INVALID"),
    "/fedround.v1.ModelService/GetModel": model(OK, OK),
    "/fedround.v1.ModelService/GetModels": NONE,
    "/fedround.v1.ModelService/GetModelVersions": model(OK, OK),
    "/fedround.v1.ModelService/TagModelVersion": model(OK, "", tag="mine"),
    "/fedround.v1.ModelService/DownloadModel": model(OK, OK),
    "/fedround.v1.ModelService/RemoveModel": model("MODEL_IN_USE", ""),
    "/fedround.v1.ModelService/GetMetrics": model(OK, OK),
    "/fedround.v1.InferenceService/Predict": model("ARCHITECTURE_UNKNOWN", "ARCHITECTURE_UNKNOWN", inputs=INPUTS),
    "/fedround.v1.AuditService/ReadAudit": NONE,
    "/fedround.v1.AuditService/GetAuditHead": NONE,
    # Only the actor may see which updates others sent.
    "/fedround.v1.AuditService/GetContributions": model(OK, "MODEL_NOT_FOUND"),
    "/fedround.v1.AuditService/ReplayRound": training("REPLAY_IMPOSSIBLE", "NOT_ACTOR"),
    "/fedround.v1.AuditService/ReplayTraining": training("REPLAY_IMPOSSIBLE", "NOT_ACTOR"),
    "/fedround.v1.ServerService/GetServerStatus": NONE,
    "/fedround.v1.ServerService/CollectFiles": NONE,
    "/grpc.health.v1.Health/Check": NONE,
    "/grpc.health.v1.Health/List": NONE,
    "/grpc.health.v1.Health/Watch": NONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule("", {"list_services": ""}),
    "/grpc.channelz.v1.Channelz/GetTopChannels": NONE,
    "/grpc.channelz.v1.Channelz/GetServers": NONE,
    "/grpc.channelz.v1.Channelz/GetServer": Rule(owner="NOT_FOUND"),
    "/grpc.channelz.v1.Channelz/GetServerSockets": Rule(owner="NOT_FOUND"),
    "/grpc.channelz.v1.Channelz/GetChannel": Rule(owner="NOT_FOUND"),
    "/grpc.channelz.v1.Channelz/GetSubchannel": Rule(owner="NOT_FOUND"),
    "/grpc.channelz.v1.Channelz/GetSocket": Rule(owner="NOT_FOUND"),
}
