"""The calls of UserService: users, their tokens and their certificates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from fedround.v1 import user_pb2
from fedround.v1.user_pb2 import User
from fedround_client.rpc import Rpc, duration

MAX_CREATED = 1000
"""How many users one call creates."""

RoleName: TypeAlias = Literal["ADMIN", "ACTOR", "CLIENT", "VIEWER"]


class UserCalls:
    """The calls of UserService."""

    _rpc: Rpc

    def create_user(
        self,
        name: str,
        role: RoleName = "CLIENT",
        *,
        lifetime: float | None = None,
        certificate_names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> tuple[User, str]:
        """Creates a user. For admins.

        Args:
            name: Unique, 1 to 200 characters.
            role: What the user may do.
            lifetime: Seconds until the token expires; None for the server's default.
            certificate_names: DNS names, URIs and e-mail addresses. A client certificate with one of them
                authenticates the user.
            labels: Labels by which the cohorts of trainings select participants.

        Returns:
            The user, and its token, which the server does not show again.

        Raises:
            RoleRequired: You are not an admin.
            FieldInvalid: The name or the lifetime is not valid.
            CertificateNameTaken: A certificate name belongs to another user.
        """
        request = user_pb2.CreateUserRequest(
            name=name,
            role=_role(role),
            lifetime=duration(lifetime),
            certificate_names=certificate_names,
            labels=labels,
        )
        response = self._rpc.unary(self._rpc.users.CreateUser, request)
        return response.user, response.token

    def create_users(
        self,
        names: Iterable[str],
        role: RoleName = "CLIENT",
        *,
        lifetime: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[tuple[str, str]]:
        """Creates many users, up to a thousand in one call, of which all or none are created. For admins.

        Args:
            names: Their names; the rest is as for `create_user`.
            role: What they may do.
            lifetime: Seconds until their tokens expire; None for the server's default.
            labels: Labels of each of them.

        Returns:
            The id and the token of each, in the order of the names. The server does not show the tokens again.

        Raises:
            RoleRequired: You are not an admin.
            FieldInvalid: A name or the lifetime is not valid.
            UserExists: A name is taken, or two are the same.
        """
        users = [
            user_pb2.CreateUserRequest(name=name, role=_role(role), lifetime=duration(lifetime), labels=labels)
            for name in names
        ]
        created: list[tuple[str, str]] = []
        for start in range(0, len(users), MAX_CREATED):
            request = user_pb2.CreateUsersRequest(users=users[start : start + MAX_CREATED])
            response = self._rpc.unary(self._rpc.users.CreateUsers, request)
            created += [(user.user_id, user.token) for user in response.users]
        return created

    def get_user(self, user_id: str) -> User:
        """Returns a user.

        Raises:
            UserNotFound: No user has this UUID, or you may not see it.
        """
        return self._rpc.unary(self._rpc.users.GetUser, user_pb2.GetUserRequest(user_id=user_id)).user

    def users(self, role: RoleName | None = None) -> Iterator[User]:
        """Iterates over the users, sorted by name; fetches them page by page. For admins and actors.

        Args:
            role: Only those with this role; None for all.

        Raises:
            RoleRequired: You are neither an admin nor an actor.
        """
        role_value = user_pb2.ROLE_UNSPECIFIED if role is None else _role(role)
        for page in self._rpc.pages(self._rpc.users.GetUsers, user_pb2.GetUsersRequest(role=role_value)):
            yield from page.users

    def myself(self) -> User:
        """Returns the user that the token or the certificate authenticates."""
        return self._rpc.unary(self._rpc.users.GetMyself, user_pb2.GetMyselfRequest()).user

    def rotate_token(self, user_id: str = "", *, overlap: float | None = None, lifetime: float | None = None) -> str:
        """Replaces a user's token.

        Args:
            user_id: UUID of the user, for admins; empty for yourself. This client continues to use the old token.
            overlap: Seconds that the old token stays valid, at most 30 days; None to revoke it at once.
            lifetime: Seconds until the new token expires; None for the server's default.

        Returns:
            The new token, which the server does not show again.
        """
        request = user_pb2.RotateTokenRequest(user_id=user_id, overlap=duration(overlap), lifetime=duration(lifetime))
        return self._rpc.unary(self._rpc.users.RotateToken, request).token

    def revoke_token(self, token_id: str, user_id: str = "") -> None:
        """Revokes a token; ends the calls that were made with it.

        Args:
            token_id: Id of the token, from `User.tokens`.
            user_id: UUID of the user, for admins; empty for yourself.

        Raises:
            TokenNotFound: The user has no such token.
        """
        request = user_pb2.RevokeTokenRequest(user_id=user_id, token_id=token_id)
        self._rpc.unary(self._rpc.users.RevokeToken, request)

    def set_certificate_names(self, user_id: str, names: Iterable[str]) -> User:
        """Sets the names in client certificates that authenticate a user, in place of those set before. For admins.

        Args:
            user_id: UUID of the user.
            names: DNS names, URIs and e-mail addresses, as in the subjectAltName of a certificate.

        Raises:
            CertificateNameTaken: A name belongs to another user.
        """
        request = user_pb2.SetCertificateNamesRequest(user_id=user_id, certificate_names=names)
        return self._rpc.unary(self._rpc.users.SetCertificateNames, request).user

    def update_user(self, user_id: str, *, labels: Mapping[str, str]) -> User:
        """Sets the labels of a user, in place of those set before. For admins.

        The cohorts of trainings select participants by labels; rounds that are open keep their cohorts.

        Args:
            user_id: UUID of the user.
            labels: At most 50; names of 1 to 100 characters, values of at most 200.

        Raises:
            UserNotFound: No user has this UUID.
            FieldInvalid: A label is not valid.
        """
        request = user_pb2.UpdateUserRequest(user_id=user_id, labels=labels)
        return self._rpc.unary(self._rpc.users.UpdateUser, request).user

    def remove_user(self, user_id: str, *, force: bool = False, remove_models: bool = False) -> None:
        """Removes a user, its tokens, its participation in trainings, and the trainings of its that have not ended.

        For admins.

        Args:
            user_id: UUID of the user. With remove_models, it may have been removed before.
            force: Remove the user even if it is the actor of running trainings, which are then removed too.
            remove_models: Remove its models and its ended trainings, too. Otherwise they stay for their participants,
                and only another call with remove_models removes them.

        Raises:
            UserNotFound: No user has this UUID.
            TrainingRunning: It is the actor of a running training, and force is False.
        """
        request = user_pb2.RemoveUserRequest(user_id=user_id, force=force, remove_models=remove_models)
        self._rpc.unary(self._rpc.users.RemoveUser, request)


def _role(name: RoleName) -> user_pb2.Role.ValueType:
    return user_pb2.Role.Value(f"ROLE_{name}")
