"""Reads of users."""

from collections.abc import Iterable, Sequence

from fedround_server.store.db.compiled import in_array
from fedround_server.store.db.row_locks import locked
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.schema import UserRow


def lock_user(user_id: str) -> bool:
    """Locks a user, so that its calls and its removal run one after the other.

    The lock still allows other transactions to register the user as a client.

    Returns:
        Whether the user exists.
    """
    rows = UserRow.select().where(UserRow.user_id == user_id, UserRow.remove_time.is_null())
    return locked(rows, "FOR NO KEY UPDATE").first() is not None


def unknown_users(user_ids: Iterable[str]) -> list[str]:
    """Returns the ids without a user; the users of the others cannot be removed before the transaction ends."""
    wanted = sorted(set(user_ids))
    known: set[str] = set()
    for start in range(0, len(wanted), BATCH_ROWS):
        rows = UserRow.select(UserRow.user_id).where(
            UserRow.user_id.in_(wanted[start : start + BATCH_ROWS]), UserRow.remove_time.is_null()
        )
        known.update(row.user_id for row in locked(rows.order_by(UserRow.user_id), "FOR KEY SHARE"))
    return sorted(set(wanted) - known)


def user_names(user_ids: Sequence[str]) -> dict[str, str]:
    """Returns the names of users, also of removed ones, by id."""
    rows = UserRow.select(UserRow.user_id, UserRow.name).where(in_array(UserRow.user_id, user_ids))
    return {row.user_id: row.name.removesuffix(f"#{row.user_id}") for row in rows}
