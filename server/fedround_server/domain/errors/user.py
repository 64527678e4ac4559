"""Refusals about users: who calls, and what its role may."""

from fedround_server.domain.errors.family import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)


class TokenMissing(Unauthenticated):
    """The call carries no token."""

    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("the call carries no token: send metadata `authorization: Bearer TOKEN` or `x-token: TOKEN`")


class TokenInvalid(Unauthenticated):
    """The token is malformed, unknown or revoked."""

    reason = "TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the token is not valid (any more): ask an admin for a new one (`fedround user rotate-token`)")


class RoleRequired(PermissionDenied):
    """The caller's role does not include this call."""

    reason = "ROLE_REQUIRED"


class UserNotFound(NotFound):
    """No such user for this caller."""

    reason = "USER_NOT_FOUND"
    resource_type = "user"


class UserExists(AlreadyExists):
    """The name is taken."""

    reason = "USER_EXISTS"


class LastAdmin(FailedPrecondition):
    """The server keeps at least one admin."""

    reason = "LAST_ADMIN"
