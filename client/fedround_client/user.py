"""Users: who may talk to the server, and with which token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from fedround.v1 import user_pb2
from fedround.v1.user_pb2 import User
from fedround_client.rpc import Rpc, duration

RoleName: TypeAlias = Literal["ADMIN", "ACTOR", "CLIENT"]


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
    ) -> tuple[User, str]:
        """Creates a user. For admins.

        Args:
            name: Unique, 1 to 200 characters.
            role: What the user may do.
            lifetime: Seconds that the token is good; None for as long as the server's settings say.
            certificate_names: DNS names, URIs and e-mail addresses: client certificates with one of them are the
                user's.

        Returns:
            The user, and its token: the only time that the server shows it.

        Raises:
            RoleRequired: You are no admin.
            FieldInvalid: The name or the lifetime is refused.
            CertificateNameTaken: A certificate name is another user's.
        """
        request = user_pb2.CreateUserRequest(
            name=name, role=_role(role), lifetime=duration(lifetime), certificate_names=certificate_names
        )
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
        """Answers the user that the token, or the certificate, belongs to."""
        return self._rpc.unary(self._rpc.users.GetMyself, user_pb2.GetMyselfRequest()).user

    def rotate_token(self, user_id: str = "", *, overlap: float | None = None, lifetime: float | None = None) -> str:
        """Replaces a user's token.

        Args:
            user_id: UUID of the user, for admins; empty for yourself. This client keeps using the old token.
            overlap: Seconds that the old token goes on to work, at most 30 days; None for not at all.
            lifetime: Seconds that the new token is good; None for as long as the server's settings say.

        Returns:
            The new token, shown this once.
        """
        request = user_pb2.RotateTokenRequest(user_id=user_id, overlap=duration(overlap), lifetime=duration(lifetime))
        return self._rpc.unary(self._rpc.users.RotateToken, request).token

    def revoke_token(self, token_id: str, user_id: str = "") -> None:
        """Revokes a token; calls that were made with it end at once.

        Args:
            token_id: Which one, as `User.tokens` shows it.
            user_id: UUID of the user, for admins; empty for yourself.

        Raises:
            TokenNotFound: The user has no such token.
        """
        request = user_pb2.RevokeTokenRequest(user_id=user_id, token_id=token_id)
        self._rpc.unary(self._rpc.users.RevokeToken, request)

    def set_certificate_names(self, user_id: str, names: Iterable[str]) -> User:
        """Sets which client certificates are a user's, in place of those set before. For admins.

        Args:
            user_id: UUID of the user.
            names: DNS names, URIs and e-mail addresses, as they stand in a certificate's subjectAltName.

        Raises:
            CertificateNameTaken: One is another user's.
        """
        request = user_pb2.SetCertificateNamesRequest(user_id=user_id, certificate_names=names)
        return self._rpc.unary(self._rpc.users.SetCertificateNames, request).user

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
