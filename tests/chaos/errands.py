"""What stories seldom do, for points that are to be reached soon."""

from collections.abc import Callable
from typing import Any

from calls import digest, new_id
from chaos import tensors
from chaos.desk import Desk
from chaos.story import CLOSED, GONE, Story
from fedround.v1 import model_pb2, round_pb2, training_pb2, user_pb2


def users(desk: Desk, seed: str) -> None:
    """Somebody comes, gets a new token and a name in certificates, loses the token and goes."""
    user = desk.user("CLIENT")
    rotation = user_pb2.RotateTokenRequest(user_id=user.user_id)
    token = desk.call(desk.admin, desk.users.RotateToken, rotation).token
    names = user_pb2.SetCertificateNamesRequest(user_id=user.user_id, certificate_names=[f"{new_id()}.example"])
    desk.call(desk.admin, desk.users.SetCertificateNames, names)
    revocation = user_pb2.RevokeTokenRequest(user_id=user.user_id, token_id=digest(token.encode())[:16])
    desk.call(desk.admin, desk.users.RevokeToken, revocation, "TOKEN_NOT_FOUND")
    request = user_pb2.RemoveUserRequest(user_id=user.user_id)
    desk.call(desk.admin, desk.users.RemoveUser, request, "USER_NOT_FOUND")
    desk.history.add("user_removed", user_id=user.user_id)


def models(desk: Desk, seed: str) -> None:
    """A model is uploaded, tagged and removed; to remove it again is refused."""
    actor = desk.user("ACTOR")
    file = tensors.write({"weight": tensors.Tensor("F32", (1,), (float(len(seed)),))})
    spec = model_pb2.ModelSpec(name=new_id())
    made = desk.call(
        actor, desk.models.UploadModel, lambda: [model_pb2.UploadModelRequest(spec=spec, chunk=file)]
    ).model
    tag = model_pb2.TagModelVersionRequest(model_id=made.model_id, version=0, tag="good")
    desk.call(actor, desk.models.TagModelVersion, tag)
    removal = model_pb2.RemoveModelRequest(model_id=made.model_id)
    for _ in range(2):
        desk.call(actor, desk.models.RemoveModel, removal, "MODEL_NOT_FOUND")


class Short(Story):
    """A training that comes and goes, without updates that count."""

    def come_and_go(self) -> None:
        """Creates, registers, removes a client, starts and removes the training."""
        self._gather()
        self._register(self._present[1:])
        left = self._present.pop()
        request = training_pb2.RemoveClientsRequest(training_id=self._training_id, client_ids=[left.user_id])
        if self._ask(self._actor, self._desk.trainings.RemoveClients, request, *GONE, "UNKNOWN_CLIENTS"):
            self._note("left", user_id=left.user_id)
        self._start()
        report = round_pb2.SubmitMetricsRequest(training_id=self._training_id, round=0, num_examples=1)
        self._ask(self._present[0], self._desk.rounds.SubmitMetrics, report, *CLOSED)
        self._remove_training()

    def miss_a_deadline(self) -> None:
        """Starts the training, and nobody submits anything before the deadline."""
        self._gather(deadline_ms=30)
        self._start()
        for _ in self._desk.events(self._actor, self._training_id):
            pass

    def _gather(self, deadline_ms: int | None = None) -> None:
        self._actor = self._desk.user("ACTOR")
        self._present = [self._desk.user("CLIENT") for _ in range(3)]
        first = [self._present[0].user_id]
        spec = training_pb2.TrainingSpec(name="short", target_num_updates=1, client_ids=first, request_id=new_id())
        if deadline_ms is not None:
            spec.round_policy.deadline.FromMilliseconds(deadline_ms)
        self._create(spec)


def trainings(desk: Desk, seed: str) -> None:
    Short(desk, seed).come_and_go()


def deadlines(desk: Desk, seed: str) -> None:
    Short(desk, seed).miss_a_deadline()


ERRANDS: dict[str, Callable[[Desk, str], Any]] = {
    "user.": users,
    "credential.": users,
    "model.": models,
    "training.": trainings,
    "round.judge": deadlines,
    "deadline.": deadlines,
}


def errand(point: str) -> Callable[[Desk, str], Any] | None:
    """Returns what reaches a point soon; None for those that every story reaches."""
    return next((run for prefix, run in ERRANDS.items() if point.startswith(prefix)), None)
