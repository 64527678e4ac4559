"""Reads of users."""

from collections.abc import Iterable, Sequence

from peewee import ModelSelect

from fedround_server.domain.user import Role, User, original_name
from fedround_server.store.db.compiled import in_array
from fedround_server.store.db.rows import locked
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.mapping import to_user
from fedround_server.store.tables.schema import UserRow


def find_user(user_id: str) -> UserRow | None:
    """Returns a user, unless it was removed."""
    row: UserRow | None = UserRow.get_or_none(UserRow.user_id == user_id, UserRow.remove_time.is_null())
    return row


def find_removed_user(user_id: str) -> UserRow | None:
    """Returns a user that was removed."""
    row: UserRow | None = UserRow.get_or_none(UserRow.user_id == user_id, UserRow.remove_time.is_null(False))
    return row


def find_taken_user_name(names: Sequence[str]) -> str | None:
    """Returns the first of some names that a user has."""
    row = UserRow.select(UserRow.name).where(in_array(UserRow.name, names)).order_by(UserRow.name).first()
    return None if row is None else str(row.name)


def lock_user(user_id: str, strength: str = "FOR NO KEY UPDATE") -> bool:
    """Locks a user, so that its calls and its removal run one after the other; returns whether the user exists.

    By default, the lock still allows other transactions to register the user as a client.
    """
    rows = UserRow.select().where(UserRow.user_id == user_id, UserRow.remove_time.is_null())
    return locked(rows, strength).first() is not None


def unknown_clients(user_ids: Iterable[str]) -> list[str]:
    """Returns the ids without a user that can take part in trainings: viewers cannot.

    The users of the others cannot be removed before the transaction ends.
    """
    wanted = sorted(set(user_ids))
    known: set[str] = set()
    for start in range(0, len(wanted), BATCH_ROWS):
        rows = UserRow.select(UserRow.user_id).where(
            UserRow.user_id.in_(wanted[start : start + BATCH_ROWS]),
            UserRow.role != Role.VIEWER.value,
            UserRow.remove_time.is_null(),
        )
        known.update(row.user_id for row in locked(rows.order_by(UserRow.user_id), "FOR KEY SHARE"))
    return sorted(set(wanted) - known)


def user_names(user_ids: Sequence[str]) -> dict[str, str]:
    """Returns the names of users, also of removed ones, by id."""
    rows = UserRow.select(UserRow.user_id, UserRow.name).where(in_array(UserRow.user_id, user_ids))
    return {row.user_id: original_name(row.name, row.user_id) for row in rows}


def page_users(role: Role | None, after_name: str, limit: int) -> list[User]:
    """Returns users in the order of their names, after a name; None for users of all roles."""
    rows = UserRow.select().where(UserRow.remove_time.is_null(), UserRow.name > after_name)
    if role is not None:
        rows = rows.where(UserRow.role == role.value)
    return [to_user(row) for row in rows.order_by(UserRow.name).limit(limit)]


def list_admin_ids() -> list[str]:
    """Returns the ids of the admins, the oldest first."""
    return [row.user_id for row in _admins().order_by(UserRow.create_time, UserRow.user_id)]


def lock_admin_ids() -> list[str]:
    """Locks the admins until the end of the transaction, and returns their ids, sorted.

    The lock still allows other transactions to create a training that names an admin as a client.
    """
    return [row.user_id for row in locked(_admins().order_by(UserRow.user_id), "FOR NO KEY UPDATE")]


def _admins() -> "ModelSelect[UserRow]":
    return UserRow.select().where(UserRow.role == Role.ADMIN.value, UserRow.remove_time.is_null())
