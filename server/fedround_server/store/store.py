"""The store: its verbs by noun, on one database."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from fedround_server.counters import Counters
from fedround_server.domain.audit import AuditRecord
from fedround_server.store.db.run import Database, discard, utc_now
from fedround_server.store.verbs.audit import AuditVerbs
from fedround_server.store.verbs.backup import BackupVerbs
from fedround_server.store.verbs.control import ControlVerbs
from fedround_server.store.verbs.counterfactual import CounterfactualVerbs
from fedround_server.store.verbs.credentials import CredentialVerbs
from fedround_server.store.verbs.event import EventVerbs
from fedround_server.store.verbs.model import ModelVerbs
from fedround_server.store.verbs.round import RoundVerbs
from fedround_server.store.verbs.server import ServerVerbs
from fedround_server.store.verbs.submission import SubmissionVerbs
from fedround_server.store.verbs.training import TrainingVerbs
from fedround_server.store.verbs.user import UserVerbs
from fedround_server.store.verbs.viewer import ViewerVerbs


class Store:
    """All persistent state except files. A context manager: it is open within a `with` block."""

    def __init__(
        self,
        url: str | Path,
        now: Callable[[], datetime] = utc_now,
        *,
        no_sync: bool = False,
        counters: Counters | None = None,
        tell: Callable[[Sequence[AuditRecord]], None] = discard,
    ) -> None:
        """Connects nothing yet.

        Args:
            url: A `postgresql://` URL, or the path of a SQLite file.
            now: Returns the time of entries of the audit log.
            no_sync: Whether SQLite forces nothing to disk.
            counters: Where transactions are counted; None for counters of its own.
            tell: Called with the records of each verb that has changed something, once it is committed, in the context
                of its caller.
        """
        self._database = Database(url, now, no_sync=no_sync, counters=counters, tell=tell)
        self.users = UserVerbs(self._database)
        self.credentials = CredentialVerbs(self._database)
        self.models = ModelVerbs(self._database)
        self.trainings = TrainingVerbs(self._database)
        self.control = ControlVerbs(self._database)
        self.rounds = RoundVerbs(self._database)
        self.submissions = SubmissionVerbs(self._database)
        self.events = EventVerbs(self._database)
        self.viewers = ViewerVerbs(self._database)
        self.audit = AuditVerbs(self._database)
        self.backups = BackupVerbs(self._database)
        self.counterfactuals = CounterfactualVerbs(self._database)
        self.server = ServerVerbs(self._database)

    def __enter__(self) -> Self:
        """Connects and migrates the database; it can be open in one process only."""
        self._database.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for running verbs and disconnects."""
        self._database.close()

    async def hold(self) -> None:
        """Makes sure that this process still holds the server lock of the database.

        Raises:
            RuntimeError: Another server has taken it, since the database was restarted.
            StoreUnavailable: The database does not answer.
        """
        await self._database.hold()
