"""Users: who may talk to the server, and with which token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from fedround.v1 import user_pb2
from fedround.v1.user_pb2 import User
from fedround_client.rpc import Rpc

RoleName: TypeAlias = Literal["ADMIN", "ACTOR", "CLIENT"]


class UserCalls:
    """The calls of UserService."""

    _rpc: Rpc

    def create_user(self, name: str, role: RoleName = "CLIENT") -> tuple[User, str]:
        """Creates a user. For admins.

        Args:
            name: Unique, 1 to 200 characters.
            role: What the user may do.

        Returns:
            The user, and its token: the only time that the server shows it.

        Raises:
            RoleRequired: You are no admin.
            FieldInvalid: The name is refused.
        """
        request = user_pb2.CreateUserRequest(name=name, role=_role(role))
        response = self._rpc.unary(self._rpc.users.CreateUser, request)
        return response.user, response.token

    def get_user(self, user_id: str) -> User:
        """Answers one user.

        Raises:
            UserNotFound: There is none with this UUID, or you may not see it.
        """
        return self._rpc.unary(self._rpc.users.GetUser, user_pb2.GetUserRequest(user_id=user_id)).user

    def users(self, role: RoleName | None = None) -> Iterator[User]:
        """Iterates over the users by name, fetching page after page. For admins and actors.

        Args:
            role: Only those with this role; None for all.

        Raises:
            RoleRequired: You are neither admin nor actor.
        """
        wanted = user_pb2.ROLE_UNSPECIFIED if role is None else _role(role)
        for page in self._rpc.pages(self._rpc.users.GetUsers, user_pb2.GetUsersRequest(role=wanted)):
            yield from page.users

    def myself(self) -> User:
        """Answers the user that the token belongs to."""
        return self._rpc.unary(self._rpc.users.GetMyself, user_pb2.GetMyselfRequest()).user

    def rotate_token(self, user_id: str = "") -> str:
        """Replaces a user's token; the old one is refused from now on.

        Args:
            user_id: UUID of the user, for admins; empty for yourself. This client keeps using the old token.

        Returns:
            The new token, shown this once.
        """
        request = user_pb2.RotateTokenRequest(user_id=user_id)
        return self._rpc.unary(self._rpc.users.RotateToken, request).token

    def remove_user(self, user_id: str, *, force: bool = False) -> None:
        """Removes a user: its tokens are revoked, it leaves its trainings, and those that it steers are removed.

        For admins.

        Raises:
            UserNotFound: There is none with this UUID.
            TrainingRunning: It steers running trainings, and force is not given.
        """
        self._rpc.unary(self._rpc.users.RemoveUser, user_pb2.RemoveUserRequest(user_id=user_id, force=force))


def _role(name: RoleName) -> user_pb2.Role.ValueType:
    return user_pb2.Role.Value(f"ROLE_{name}")
