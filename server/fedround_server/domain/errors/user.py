"""RejectedUpdates about users: who calls, and what its role may."""

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


class TokenExpired(Unauthenticated):
    """The token was good once."""

    reason = "TOKEN_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the token has expired: ask an admin for a new one (`fedround user rotate-token`)")


class TokenNotFound(NotFound):
    """The user has no such token."""

    reason = "TOKEN_NOT_FOUND"
    resource_type = "token"


class CertificateMismatch(Unauthenticated):
    """The client certificate and the token are of different users."""

    reason = "CERTIFICATE_MISMATCH"

    def __init__(self) -> None:
        super().__init__(
            "the client certificate is of another user than the token: send no token, or the one of the same user"
        )


class CertificateAmbiguous(Unauthenticated):
    """The client certificate names several users."""

    reason = "CERTIFICATE_AMBIGUOUS"

    def __init__(self) -> None:
        super().__init__("the client certificate names several users: use one whose subjectAltName names one of them")


class CertificateNameTaken(AlreadyExists):
    """The certificate name is another user's."""

    reason = "CERTIFICATE_NAME_TAKEN"

    def __init__(self, name: str) -> None:
        super().__init__(f"certificate_names: {name!r} is another user's: take it from that one first", name=name)


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
