"""The verb about a database that was restored from a backup."""

from datetime import datetime

from fedround_server.domain.event import next_history
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.rows import save
from fedround_server.store.db.run import Verbs, verb
from fedround_server.store.queries.training import lock_open_trainings
from fedround_server.store.tables.base import InstantField


class BackupVerbs(Verbs):
    """Transactions about backups."""

    @verb
    def restored(self, backup_time: datetime | None) -> None:
        """Begins new histories in the logs of all trainings that have not ended.

        What subscribers saw after the backup did not happen.

        Args:
            backup_time: When the database was copied; None if that is not known.
        """
        for training in lock_open_trainings():
            training.last_sequence = next_history(training.last_sequence)
            save(training)
        record("backup_restored", backup_time_us=InstantField().db_value(backup_time))
