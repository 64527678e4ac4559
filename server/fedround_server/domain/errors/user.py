"""Errors about callers and users."""

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
    remedy = "send the metadata `authorization: Bearer TOKEN` or `x-token: TOKEN`"

    def __init__(self) -> None:
        super().__init__("the call carries no token: send metadata `authorization: Bearer TOKEN` or `x-token: TOKEN`")


class TokenInvalid(Unauthenticated):
    """The token is malformed, unknown or revoked."""

    reason = "TOKEN_INVALID"
    remedy = "ask an admin for a new one: `fedround user rotate-token`"

    def __init__(self) -> None:
        super().__init__("the token is not valid (any more): ask an admin for a new one (`fedround user rotate-token`)")


class TokenExpired(Unauthenticated):
    """The token has expired; only a caller that sends the whole token learns this."""

    reason = "TOKEN_EXPIRED"
    remedy = "ask an admin for a new one, and rotate it before it expires"

    def __init__(self) -> None:
        super().__init__("the token has expired: ask an admin for a new one (`fedround user rotate-token`)")


class CertificateMismatch(Unauthenticated):
    """The token and the client certificate belong to different users."""

    reason = "CERTIFICATE_MISMATCH"
    remedy = "send no token, or the token of the certificate's user"

    def __init__(self) -> None:
        super().__init__(
            "the token and the client certificate belong to different users: send no token, or that of the"
            " certificate's user"
        )


class CertificateAmbiguous(Unauthenticated):
    """The client certificate names several users."""

    reason = "CERTIFICATE_AMBIGUOUS"
    remedy = "use a certificate for one user"

    def __init__(self) -> None:
        super().__init__("the client certificate names several users: use one whose subjectAltName names one of them")


class RoleRequired(PermissionDenied):
    """The caller's role does not include the call."""

    reason = "ROLE_REQUIRED"
    remedy = "call as a user with the role that the message names"


class UserNotFound(NotFound):
    """The user does not exist, or the caller may not see it."""

    reason = "USER_NOT_FOUND"
    remedy = "check the id"
    resource_type = "user"


class TokenNotFound(NotFound):
    """The user has no such token."""

    reason = "TOKEN_NOT_FOUND"
    remedy = "check the id: GetUser lists a user's tokens"
    resource_type = "token"


class UserExists(AlreadyExists):
    """Another user has the name."""

    reason = "USER_EXISTS"
    remedy = "choose another name"


class CertificateNameTaken(AlreadyExists):
    """Another user has the certificate name."""

    reason = "CERTIFICATE_NAME_TAKEN"
    remedy = "remove it from that user first"

    def __init__(self, name: str) -> None:
        super().__init__(f"certificate_names: another user has {name!r}: remove it from that user first", name=name)


class LastAdmin(FailedPrecondition):
    """The server keeps at least one admin."""

    reason = "LAST_ADMIN"
    remedy = "create another admin first"
