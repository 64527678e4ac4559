"""Verbs about users."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from peewee import EXCLUDED

from fedround_server.domain.errors import LastAdmin, TrainingRunning, UserExists, UserNotFound
from fedround_server.domain.user import Role, User, UserView, retired_name
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import insert, save
from fedround_server.store.db.run import Verbs, verb
from fedround_server.store.queries.model import lock_models_of_owner
from fedround_server.store.queries.training import lock_trainings_of_user
from fedround_server.store.queries.user import (
    find_removed_user,
    find_taken_user_name,
    find_user,
    lock_admin_ids,
    lock_user,
    page_users,
)
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.mapping import to_user
from fedround_server.store.tables.schema import LastSeenRow, UserRow
from fedround_server.store.transitions import end_training
from fedround_server.store.transitions.credential_changes import tell_of_change
from fedround_server.store.transitions.participants import leave
from fedround_server.store.transitions.training import state_of
from fedround_server.store.transitions.versions import remove_model
from fedround_server.store.verbs.credentials import add_certificate_names, add_tokens, remove_credentials


class UserVerbs(Verbs):
    """Verbs about users."""

    @verb
    def create(self, users: Sequence[UserView]) -> None:
        """Stores users with their credentials, all or none.

        Raises:
            UserExists: A name is taken, or two have the same.
            CertificateNameTaken: A certificate name is another user's.
        """
        _create(users)
        tell_of_change()

    @verb
    def set_labels(self, user_id: str, labels: Mapping[str, str]) -> None:
        """Sets the labels of a user, in place of those set before; rounds that are open keep their cohorts.

        Raises:
            UserNotFound: There is no such user, or it was removed.
        """
        # A round that is being opened was drawn with the labels from before: the change comes after it, also in the
        # audit log. Until it is committed, no actor registers the user in another training.
        lock_user(user_id, "FOR UPDATE")
        lock_trainings_of_user(user_id)
        row = _present(user_id)
        row.labels = dict(labels)
        save(row)
        record("user_updated", subject=user_id, labels=len(labels))
        tell_of_change()

    @verb
    def get(self, user_id: str) -> User:
        """Returns a user.

        Raises:
            UserNotFound: There is no such user, or it was removed.
        """
        return to_user(_present(user_id))

    @verb
    def page(self, role: Role | None, after_name: str, limit: int) -> list[User]:
        """Returns users in the order of their names, after a name."""
        return page_users(role, after_name, limit)

    @verb
    def remove(self, user_id: str, now: datetime, *, force: bool = False, remove_models: bool = False) -> list[str]:
        """Removes a user with its credentials and the trainings that it steers, and from those that it takes part in.

        Returns the ids of the trainings that were removed or left.

        Args:
            user_id: The user; with remove_models, it may have been removed before.
            now: The time.
            force: Whether to remove running trainings that it steers.
            remove_models: Whether to remove its models and ended trainings, too. Otherwise they stay.

        Raises:
            UserNotFound: There is no such user.
            LastAdmin: No other admin exists.
            TrainingRunning: It steers running trainings, and force is not set.
        """
        if not remove_models or find_removed_user(user_id) is None:
            _remove(_present(user_id), now)
        trainings = lock_trainings_of_user(user_id, with_ended=remove_models)
        steered = [training for training in trainings if training.actor_id == user_id]
        running = sum(state_of(training).is_running for training in steered)
        if running and not force:
            raise TrainingRunning(
                f"the user steers {running} running trainings, and no other user may: wait for their end, or set force"
                " to remove them too",
                count=str(running),
            )
        for training in trainings:
            if training.actor_id == user_id:
                end_training.remove(training, now)
            else:
                leave(training, [user_id], now)
        if remove_models:
            for model in lock_models_of_owner(user_id):
                remove_model(model, now)
        tell_of_change(user_id)
        return [training.training_id for training in trainings]

    @verb
    def record_last_seen(self, seen: Mapping[str, datetime]) -> None:
        """Stores when users were last seen, by id."""
        rows = [{"user_id": user_id, "seen_time": seen[user_id]} for user_id in sorted(seen)]
        for start in range(0, len(rows), BATCH_ROWS):
            LastSeenRow.insert_many(rows[start : start + BATCH_ROWS]).on_conflict(
                conflict_target=[LastSeenRow.user_id],
                preserve=[LastSeenRow.seen_time],
                # Another replica may have seen the user since.
                where=EXCLUDED.seen_time > LastSeenRow.seen_time,
            ).execute()


def _create(users: Sequence[UserView]) -> None:
    names = [view.user.name for view in users]
    taken = find_taken_user_name(names) or next((name for name, count in Counter(names).items() if count > 1), None)
    if taken is not None:
        raise UserExists(f"name: there is a user called {taken!r} already: choose another name")
    insert(
        *(
            UserRow(
                user_id=view.user.user_id,
                name=view.user.name,
                role=view.user.role.value,
                create_time=view.user.create_time,
                labels=dict(view.user.labels),
            )
            for view in users
        )
    )
    for view in users:
        user = view.user
        add_tokens(user.user_id, *view.tokens)
        if view.certificate_names:
            add_certificate_names(user.user_id, view.certificate_names)
        record("user_created", subject=user.user_id, role=user.role.value, labels=len(user.labels))


def _remove(row: UserRow, now: datetime) -> None:
    if row.role == Role.ADMIN.value and lock_admin_ids() == [row.user_id]:
        raise LastAdmin("this is the last admin: create another one first")
    # The name becomes free; the row stays for the history. From here on no transaction registers the user or creates
    # anything in its name.
    changed = UserRow.update(remove_time=now, name=retired_name(row.name, row.user_id)).where(
        UserRow.user_id == row.user_id, UserRow.remove_time.is_null()
    )
    if not changed.execute():
        raise UserNotFound(row.user_id)
    remove_credentials(row.user_id)
    record("user_removed", subject=row.user_id)


def _present(user_id: str) -> UserRow:
    row = find_user(user_id)
    if row is None:
        raise UserNotFound(user_id)
    return row
