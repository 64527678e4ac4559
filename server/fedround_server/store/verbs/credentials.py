"""Verbs about credentials: tokens and the names in client certificates."""

from collections.abc import Sequence
from datetime import datetime

from fedround_server.domain.errors import CertificateNameTaken, FedroundError, TokenNotFound, UserNotFound
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.token import LIVE_TOKENS, Token
from fedround_server.domain.user import UserView
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import insert
from fedround_server.store.db.run import Verbs, batched, verb
from fedround_server.store.queries.credentials import (
    find_certified_users,
    find_taken_name,
    find_token_owners,
    have_certificate_names,
    list_certificate_names,
    list_live_tokens,
)
from fedround_server.store.queries.user import find_user, list_admin_ids, lock_user
from fedround_server.store.tables.mapping import to_user
from fedround_server.store.tables.schema import CertificateNameRow, TokenRow
from fedround_server.store.transitions.credential_changes import tell_of_change


class CredentialVerbs(Verbs):
    """Verbs about credentials."""

    @batched
    def identify(self, asked: Sequence[tuple[Credentials]]) -> list[Identity | FedroundError]:
        """Returns the users that credentials belong to. Every call asks this."""
        every = [credentials for (credentials,) in asked]
        owners = find_token_owners({one.token_hash for one in every if one.token_hash is not None})
        certified = find_certified_users({name for one in every for name in one.names})

        def answer(one: Credentials) -> Identity:
            owner, token = owners.get(one.token_hash or "", (None, None))
            named = {user.user_id: user for name in one.names if (user := certified.get(name)) is not None}
            return Identity(owner, token, tuple(named.values()))

        return [answer(one) for one in every]

    @verb
    def view(self, user_id: str, now: datetime) -> UserView:
        """Returns a user with its credentials.

        Raises:
            UserNotFound: There is no such user, or it was removed.
        """
        row = find_user(user_id)
        if row is None:
            raise UserNotFound(user_id)
        return UserView(to_user(row), tuple(list_certificate_names(user_id)), tuple(list_live_tokens(user_id, now)))

    @verb
    def admins(self, now: datetime) -> tuple[list[str], bool]:
        """Returns the ids of the admins, the oldest first, and whether one of them has a valid credential."""
        ids = list_admin_ids()
        return ids, have_certificate_names(ids) or any(list_live_tokens(user_id, now) for user_id in ids)

    @verb
    def rotate(self, user_id: str, token: Token, until: datetime | None, used: str | None = None) -> None:
        """Stores a new token of a user; one of its other live tokens may stay valid for some time.

        That is the one in use, else the latest. The one in use comes first, since a caller that did not receive the
        answer rotates again, and does not have the latest one.

        Args:
            user_id: Whose token it is.
            token: The new one.
            until: When the other token expires; None for now.
            used: The hash of the token in use, if it is known.

        Raises:
            UserNotFound: There is no such user.
        """
        _lock(user_id)
        live = sorted(list_live_tokens(user_id, token.create_time), key=lambda one: one.token_hash != used)
        present = live[: LIVE_TOKENS - 1] if until is not None else []
        kept = [one.token_hash for one in present]
        TokenRow.delete().where(TokenRow.user_id == user_id, TokenRow.token_hash.not_in(kept)).execute()
        TokenRow.update(expire_time=until).where(
            TokenRow.token_hash.in_(kept), TokenRow.expire_time.is_null() | (TokenRow.expire_time > until)
        ).execute()
        add_tokens(user_id, token)
        record("token_rotated", subject=user_id, kept=len(kept))
        tell_of_change(user_id)

    @verb
    def revoke(self, user_id: str, token_id: str) -> None:
        """Revokes a token of a user.

        Raises:
            UserNotFound: There is no such user.
            TokenNotFound: It has no such token.
        """
        _lock(user_id)
        revoked = TokenRow.delete().where(TokenRow.user_id == user_id, TokenRow.token_hash.startswith(token_id))
        if not revoked.execute():
            raise TokenNotFound(token_id)
        record("token_revoked", subject=user_id)
        tell_of_change(user_id)

    @verb
    def set_certificate_names(self, user_id: str, names: Sequence[str]) -> None:
        """Sets the certificate names of a user.

        Raises:
            UserNotFound: There is no such user.
            CertificateNameTaken: A name belongs to another user.
        """
        _lock(user_id)
        CertificateNameRow.delete().where(CertificateNameRow.user_id == user_id).execute()
        add_certificate_names(user_id, names)
        record("certificate_names_set", subject=user_id, count=len(names))
        tell_of_change(user_id)


def add_tokens(user_id: str, *tokens: Token) -> None:
    """Stores tokens of a user."""
    insert(
        *(
            TokenRow(
                token_hash=one.token_hash, user_id=user_id, create_time=one.create_time, expire_time=one.expire_time
            )
            for one in tokens
        )
    )


def add_certificate_names(user_id: str, names: Sequence[str]) -> None:
    """Stores certificate names of a user.

    Raises:
        CertificateNameTaken: A name belongs to another user.
    """
    taken = find_taken_name(names)
    if taken is not None:
        raise CertificateNameTaken(taken)
    for name in names:
        CertificateNameRow.create(name=name, user_id=user_id)


def remove_credentials(user_id: str) -> None:
    """Removes all credentials of a user."""
    for table in (TokenRow, CertificateNameRow):
        table.delete().where(table.user_id == user_id).execute()


def _lock(user_id: str) -> None:
    if not lock_user(user_id):
        raise UserNotFound(user_id)
