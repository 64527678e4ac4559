"""What pages need of a server, each in one call, with pages of a size that fits a screen."""

from __future__ import annotations

from collections.abc import Iterator

from fedround.v1 import (
    audit_pb2,
    model_pb2,
    round_pb2,
    training_pb2,
    user_pb2,
)
from fedround.v1.round_pb2 import ROUND_VIEW_FULL, ROUND_VIEW_SUMMARY, GetRoundResponse, Round, RoundParticipant
from fedround.v1.training_pb2 import TrainingRole
from fedround.v1.user_pb2 import ROLE_CLIENT, ROLE_VIEWER, User
from fedround_client.dashboard.sessions import Account
from fedround_client.rpc import PAGE_SIZE

ROWS = 50
"""Rows of a table on one page."""
MAX_FILTERED = 200
"""How many matches of a filter are shown."""


class Reader:
    """Calls a server with the token of an account."""

    def __init__(self, account: Account) -> None:
        """Creates a reader.

        Args:
            account: Whose token is used.
        """
        self.account = account
        self._rpc = account.client._rpc

    def trainings(self, page_token: str = "") -> training_pb2.GetTrainingsResponse:
        """Returns a page of the trainings that the visitor may see."""
        roles = {ROLE_VIEWER: "VIEWER", ROLE_CLIENT: "CLIENT"}
        role = TrainingRole.Value(f"TRAINING_ROLE_{roles.get(self.account.user.role, 'ACTOR')}")
        request = training_pb2.GetTrainingsRequest(page_size=ROWS, page_token=page_token, role=role)
        return self._rpc.unary(self._rpc.trainings.GetTrainings, request)

    def training(self, training_id: str) -> training_pb2.Training:
        """Returns a training."""
        request = training_pb2.GetTrainingRequest(training_id=training_id)
        return self._rpc.unary(self._rpc.trainings.GetTraining, request).training

    def round(
        self, training_id: str, number: int | None = None, *, page_size: int = ROWS, page_token: str = ""
    ) -> GetRoundResponse:
        """Returns a round with a page of its participants."""
        request = round_pb2.GetRoundRequest(
            training_id=training_id, round=number, view=ROUND_VIEW_FULL, page_size=page_size, page_token=page_token
        )
        return self._rpc.unary(self._rpc.rounds.GetRound, request)

    def round_summary(self, training_id: str, number: int) -> Round:
        """Returns a round without its participants."""
        request = round_pb2.GetRoundRequest(training_id=training_id, round=number, view=ROUND_VIEW_SUMMARY)
        return self._rpc.unary(self._rpc.rounds.GetRound, request).round

    def round_participants(self, training_id: str, number: int) -> Iterator[RoundParticipant]:
        """Iterates over the participants of a round."""
        page = self.round(training_id, number, page_size=PAGE_SIZE)
        yield from page.round.participants
        while page.next_page_token:
            page = self.round(training_id, number, page_size=PAGE_SIZE, page_token=page.next_page_token)
            yield from page.round.participants

    def rounds(self, training_id: str, page_token: str = "", page_size: int = ROWS) -> round_pb2.GetRoundsResponse:
        """Returns a page of the rounds of a training, the latest first."""
        request = round_pb2.GetRoundsRequest(training_id=training_id, page_size=page_size, page_token=page_token)
        return self._rpc.unary(self._rpc.rounds.GetRounds, request)

    def model(self, model_id: str) -> model_pb2.Model:
        """Returns a model."""
        return self._rpc.unary(self._rpc.models.GetModel, model_pb2.GetModelRequest(model_id=model_id)).model

    def versions(
        self, model_id: str, page_token: str = "", page_size: int = ROWS
    ) -> model_pb2.GetModelVersionsResponse:
        """Returns a page of the versions of a model, the newest first."""
        request = model_pb2.GetModelVersionsRequest(model_id=model_id, page_size=page_size, page_token=page_token)
        return self._rpc.unary(self._rpc.models.GetModelVersions, request)

    def metrics(self, model_id: str, page_token: str = "") -> model_pb2.GetMetricsResponse:
        """Returns a page of the metrics reported for a model, by round."""
        request = model_pb2.GetMetricsRequest(model_id=model_id, page_size=PAGE_SIZE, page_token=page_token)
        return self._rpc.unary(self._rpc.models.GetMetrics, request)

    def contributions(self, model_id: str, version: int, page_token: str = "") -> audit_pb2.GetContributionsResponse:
        """Returns a page of the updates that a version was made of, and its origin."""
        request = audit_pb2.GetContributionsRequest(
            model_id=model_id, version=version, page_size=ROWS, page_token=page_token
        )
        return self._rpc.unary(self._rpc.audit.GetContributions, request)

    def users(self, page_token: str = "") -> user_pb2.GetUsersResponse:
        """Returns a page of the users, sorted by name."""
        request = user_pb2.GetUsersRequest(page_size=ROWS, page_token=page_token)
        return self._rpc.unary(self._rpc.users.GetUsers, request)

    def user(self, user_id: str) -> User:
        """Returns a user."""
        return self._rpc.unary(self._rpc.users.GetUser, user_pb2.GetUserRequest(user_id=user_id)).user

    def matching_users(self, text: str, role: user_pb2.Role.ValueType | None = None) -> Iterator[User]:
        """Iterates over the users whose name contains a text, or whose id begins with it."""
        request = user_pb2.GetUsersRequest(role=role or user_pb2.ROLE_UNSPECIFIED)
        for page in self._rpc.pages(self._rpc.users.GetUsers, request):
            yield from (user for user in page.users if matches(text, user.name, user.user_id))


def matches(text: str, name: str, user_id: str) -> bool:
    """Returns whether a text is part of a name, in upper or lower case, or begins an id."""
    return text.casefold() in name.casefold() or user_id.startswith(text.lower())
