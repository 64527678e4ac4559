"""Verbs about credentials: tokens and the names in client certificates."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from peewee import ModelSelect

from fedround_server.domain.errors import CertificateNameTaken, FedroundError, TokenNotFound, UserNotFound
from fedround_server.domain.identity import Credentials, Identity
from fedround_server.domain.token import LIVE_TOKENS, Token
from fedround_server.domain.user import Role, User, UserView
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.compiled import compiled, in_array
from fedround_server.store.db.run import Database, batched, verb
from fedround_server.store.queries.user import lock_user
from fedround_server.store.tables.mapping import to_token, to_user
from fedround_server.store.tables.schema import CertificateNameRow, TokenRow, UserRow


@dataclass(frozen=True, slots=True)
class CredentialVerbs:
    """Verbs about credentials."""

    database: Database

    @batched
    def identify(self, asked: Sequence[tuple[Credentials]]) -> list[Identity | FedroundError]:
        """Returns the users that credentials belong to. Every call asks this."""
        every = [credentials for (credentials,) in asked]
        owners = _owners({one.token_hash for one in every if one.token_hash is not None})
        certified = _certified({name for one in every for name in one.names})

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
        row = UserRow.get_or_none(UserRow.user_id == user_id, UserRow.remove_time.is_null())
        if row is None:
            raise UserNotFound(user_id)
        names = CertificateNameRow.select().where(CertificateNameRow.user_id == user_id)
        ordered = names.order_by(CertificateNameRow.name)
        return UserView(to_user(row), tuple(row.name for row in ordered), tuple(_live(user_id, now)))

    @verb
    def admins(self, now: datetime) -> tuple[list[str], bool]:
        """Returns the ids of the admins, the oldest first, and whether one of them has a valid credential."""
        rows = UserRow.select().where(UserRow.role == Role.ADMIN.value, UserRow.remove_time.is_null())
        ids = [row.user_id for row in rows.order_by(UserRow.create_time, UserRow.user_id)]
        named = CertificateNameRow.select().where(CertificateNameRow.user_id.in_(ids)).exists()
        return ids, named or any(_live(user_id, now) for user_id in ids)

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
        live = sorted(_live(user_id, token.create_time), key=lambda one: one.token_hash != used)
        present = live[: LIVE_TOKENS - 1] if until is not None else []
        kept = [one.token_hash for one in present]
        TokenRow.delete().where(TokenRow.user_id == user_id, TokenRow.token_hash.not_in(kept)).execute()
        TokenRow.update(expire_time=until).where(
            TokenRow.token_hash.in_(kept), TokenRow.expire_time.is_null() | (TokenRow.expire_time > until)
        ).execute()
        add_token(user_id, token)
        record("token_rotated", subject=user_id, kept=len(kept))

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


def add_token(user_id: str, token: Token) -> None:
    """Stores a token."""
    TokenRow.create(
        token_hash=token.token_hash, user_id=user_id, create_time=token.create_time, expire_time=token.expire_time
    )


def add_certificate_names(user_id: str, names: Sequence[str]) -> None:
    """Stores certificate names of a user.

    Raises:
        CertificateNameTaken: A name belongs to another user.
    """
    taken = CertificateNameRow.select().where(CertificateNameRow.name.in_(list(names)))
    if (row := taken.order_by(CertificateNameRow.name).first()) is not None:
        raise CertificateNameTaken(row.name)
    for name in names:
        CertificateNameRow.create(name=name, user_id=user_id)


def remove_credentials(user_id: str) -> None:
    """Removes all credentials of a user."""
    for table in (TokenRow, CertificateNameRow):
        table.delete().where(table.user_id == user_id).execute()


def _lock(user_id: str) -> None:
    if not lock_user(user_id):
        raise UserNotFound(user_id)


def _live(user_id: str, now: datetime) -> list[Token]:
    """Returns the live tokens of a user, the latest first."""
    rows = TokenRow.select().where(TokenRow.user_id == user_id).order_by(TokenRow.create_time.desc())
    return [token for token in map(to_token, rows) if token.is_live(now)]


def _owners(token_hashes: Collection[str]) -> dict[str, tuple[User, Token]]:
    """Returns the owners of tokens, by hash."""
    tokens = {row.token_hash: row for row in _tokens.all(token_hashes)} if token_hashes else {}
    users = _present_users({row.user_id for row in tokens.values()})
    return {hash_: (users[row.user_id], to_token(row)) for hash_, row in tokens.items() if row.user_id in users}


def _certified(names: Collection[str]) -> dict[str, User]:
    """Returns the owners of certificate names, by name."""
    owners = {row.name: row.user_id for row in _names.all(names)} if names else {}
    users = _present_users(set(owners.values()))
    return {name: users[user_id] for name, user_id in owners.items() if user_id in users}


def _present_users(user_ids: Collection[str]) -> dict[str, User]:
    return {row.user_id: to_user(row) for row in _users.all(user_ids)} if user_ids else {}


@compiled
def _tokens(token_hashes: Collection[str]) -> "ModelSelect[TokenRow]":
    return TokenRow.select().where(in_array(TokenRow.token_hash, token_hashes))


@compiled
def _names(names: Collection[str]) -> "ModelSelect[CertificateNameRow]":
    return CertificateNameRow.select().where(in_array(CertificateNameRow.name, names))


@compiled
def _users(user_ids: Collection[str]) -> "ModelSelect[UserRow]":
    return UserRow.select().where(in_array(UserRow.user_id, user_ids), UserRow.remove_time.is_null())
