"""Verbs about users and their tokens."""

from dataclasses import dataclass
from datetime import datetime

from peewee import ModelSelect

from fedround_server.domain.errors import LastAdmin, UserExists, UserNotFound
from fedround_server.domain.user import Role, User
from fedround_server.store import steps
from fedround_server.store.database import Database, verb
from fedround_server.store.rows import to_user
from fedround_server.store.schema import ParticipantRow, TokenRow, UserRow


@dataclass(frozen=True, slots=True)
class UserVerbs:
    """What the store does with users."""

    database: Database

    @verb
    def create(self, user: User, token_hash: str) -> User:
        """Stores a user with its first token.

        Raises:
            UserExists: The name is taken.
        """
        if UserRow.select().where(UserRow.name == user.name).exists():
            raise UserExists(f"name: there is a user called {user.name!r} already: choose another name")
        UserRow.create(user_id=user.user_id, name=user.name, role=user.role.value, create_time=user.create_time)
        TokenRow.create(token_hash=token_hash, user_id=user.user_id, create_time=user.create_time)
        return user

    @verb
    def get(self, user_id: str) -> User:
        """Returns a user.

        Raises:
            UserNotFound: There is none, or not any more.
        """
        return to_user(_present(user_id))

    @verb
    def find_by_token(self, token_hash: str) -> User | None:
        """Returns the user that a live token belongs to."""
        row = (
            UserRow.select()
            .join(TokenRow, on=(TokenRow.user_id == UserRow.user_id))
            .where(TokenRow.token_hash == token_hash, UserRow.remove_time.is_null())
            .first()
        )
        return None if row is None else to_user(row)

    @verb
    def page(self, role: Role | None, after_name: str, limit: int) -> list[User]:
        """Returns users by name, behind a name."""
        rows = UserRow.select().where(UserRow.remove_time.is_null(), UserRow.name > after_name)
        if role is not None:
            rows = rows.where(UserRow.role == role.value)
        return [to_user(row) for row in rows.order_by(UserRow.name).limit(limit)]

    @verb
    def has_admin(self) -> bool:
        """Tells whether anybody can manage users."""
        return _admins().exists()

    @verb
    def replace_token(self, user_id: str, token_hash: str, now: datetime) -> None:
        """Revokes a user's tokens and stores a new one.

        Raises:
            UserNotFound: There is no such user.
        """
        _present(user_id)
        TokenRow.delete().where(TokenRow.user_id == user_id).execute()
        TokenRow.create(token_hash=token_hash, user_id=user_id, create_time=now)

    @verb
    def remove(self, user_id: str, now: datetime) -> list[str]:
        """Removes a user, with its tokens and its parts in trainings that are not ended.

        Returns:
            The ids of the trainings that it left.

        Raises:
            UserNotFound: There is no such user.
            LastAdmin: Nobody would be left to manage users.
        """
        row = _present(user_id)
        if row.role == Role.ADMIN.value:
            # This strength lets an admin that creates a training, and is held for its quota, name another one in it.
            admins = steps.held(_admins().order_by(UserRow.user_id), "FOR NO KEY UPDATE")
            if len(admins) == 1:
                raise LastAdmin("this is the last admin: create another one first")
        TokenRow.delete().where(TokenRow.user_id == user_id).execute()
        # The name becomes free; the row stays for the history that it is part of.
        UserRow.update(remove_time=now, name=f"{row.name}#{user_id}").where(UserRow.user_id == user_id).execute()
        parts = (
            ParticipantRow.select(ParticipantRow.training_id)
            .where(ParticipantRow.user_id == user_id, ParticipantRow.remove_time.is_null())
            .order_by(ParticipantRow.training_id)
        )
        left = []
        for part in parts:
            training = steps.try_lock(part.training_id)
            if training is None or steps.state_of(training).is_ended:
                continue
            if user_id in steps.participant_ids(training.training_id):
                steps.leave(training, [user_id], now)
                left.append(training.training_id)
        return left


def _present(user_id: str) -> UserRow:
    row: UserRow | None = UserRow.get_or_none(UserRow.user_id == user_id, UserRow.remove_time.is_null())
    if row is None:
        raise UserNotFound(user_id)
    return row


def _admins() -> "ModelSelect[UserRow]":
    return UserRow.select().where(UserRow.role == Role.ADMIN.value, UserRow.remove_time.is_null())
