"""Reads of credentials: tokens and the names in client certificates."""

from collections.abc import Collection, Sequence
from datetime import datetime

from peewee import ModelSelect

from fedround_server.domain.token import Token
from fedround_server.domain.user import User
from fedround_server.store.db.compiled import compiled, in_array
from fedround_server.store.tables.mapping import to_token, to_user
from fedround_server.store.tables.schema import CertificateNameRow, TokenRow, UserRow


@compiled
def _tokens(token_hashes: Collection[str]) -> "ModelSelect[TokenRow]":
    return TokenRow.select().where(in_array(TokenRow.token_hash, token_hashes))


@compiled
def _names(names: Collection[str]) -> "ModelSelect[CertificateNameRow]":
    return CertificateNameRow.select().where(in_array(CertificateNameRow.name, names))


@compiled
def _users(user_ids: Collection[str]) -> "ModelSelect[UserRow]":
    return UserRow.select().where(in_array(UserRow.user_id, user_ids), UserRow.remove_time.is_null())


def find_token_owners(token_hashes: Collection[str]) -> dict[str, tuple[User, Token]]:
    """Returns the owners of tokens, with the tokens, by hash."""
    tokens = {row.token_hash: row for row in _tokens.all(token_hashes)} if token_hashes else {}
    users = _present_users({row.user_id for row in tokens.values()})
    return {hash_: (users[row.user_id], to_token(row)) for hash_, row in tokens.items() if row.user_id in users}


def find_certified_users(names: Collection[str]) -> dict[str, User]:
    """Returns the owners of certificate names, by name."""
    owners = {row.name: row.user_id for row in _names.all(names)} if names else {}
    users = _present_users(set(owners.values()))
    return {name: users[user_id] for name, user_id in owners.items() if user_id in users}


def list_live_tokens(user_id: str, now: datetime) -> list[Token]:
    """Returns the live tokens of a user, the latest first."""
    rows = TokenRow.select().where(TokenRow.user_id == user_id).order_by(TokenRow.create_time.desc())
    return [token for token in map(to_token, rows) if token.is_live(now)]


def list_certificate_names(user_id: str) -> list[str]:
    """Returns the certificate names of a user, sorted."""
    rows = CertificateNameRow.select().where(CertificateNameRow.user_id == user_id)
    return [row.name for row in rows.order_by(CertificateNameRow.name)]


def have_certificate_names(user_ids: Sequence[str]) -> bool:
    """Returns whether at least one of some users has a certificate name."""
    return bool(CertificateNameRow.select().where(CertificateNameRow.user_id.in_(user_ids)).exists())


def find_taken_name(names: Sequence[str]) -> str | None:
    """Returns the first of some certificate names that belongs to a user."""
    taken = CertificateNameRow.select().where(CertificateNameRow.name.in_(list(names)))
    row = taken.order_by(CertificateNameRow.name).first()
    return None if row is None else str(row.name)


def _present_users(user_ids: Collection[str]) -> dict[str, User]:
    return {row.user_id: to_user(row) for row in _users.all(user_ids)} if user_ids else {}
