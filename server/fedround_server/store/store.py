"""The store: its verbs by noun, on one database."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from fedround_server.counters import Counters
from fedround_server.domain.audit import AuditRecord
from fedround_server.domain.place import Place
from fedround_server.store.db.lease import lease
from fedround_server.store.db.replica_session import Listener, ReplicaSession
from fedround_server.store.db.run import Database, discard
from fedround_server.store.verbs.audit import AuditVerbs
from fedround_server.store.verbs.backup import BackupVerbs
from fedround_server.store.verbs.control import ControlVerbs
from fedround_server.store.verbs.counterfactual import CounterfactualVerbs
from fedround_server.store.verbs.credentials import CredentialVerbs
from fedround_server.store.verbs.event import EventVerbs
from fedround_server.store.verbs.model import ModelVerbs
from fedround_server.store.verbs.place import PlaceClaim
from fedround_server.store.verbs.replica import ReplicaVerbs
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
        now: Callable[[], datetime] | None = None,
        *,
        no_sync: bool = False,
        counters: Counters | None = None,
        tell: Callable[[Sequence[AuditRecord]], None] = discard,
        place: Place | None = None,
        journal_id: str = "",
    ) -> None:
        """Connects nothing yet.

        Args:
            url: A `postgresql://` URL, or the path of a SQLite file.
            now: Returns the time of entries of the audit log; None for the clock that `now` shows.
            no_sync: Whether SQLite forces nothing to disk.
            counters: Where transactions are counted; None for counters of its own.
            tell: Called with the records of each verb that has changed something, once it is committed, in the context
                of its caller.
            place: Where the files are; None if the database needs not know.
            journal_id: The id of the journal of this server.
        """
        self._database = Database(
            url,
            now,
            no_sync=no_sync,
            counters=counters,
            tell=tell,
            claim=None if place is None else PlaceClaim(place),
            journal_id=journal_id,
        )
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
        self.replicas = ReplicaVerbs(self._database)

    def __enter__(self) -> Self:
        """Connects and migrates the database; SQLite's can be open in one process only."""
        self._database.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for running verbs and disconnects."""
        self._database.close()

    def join(self, name: str, version: str, listener: Listener) -> ReplicaSession | None:
        """Makes this process a replica of a PostgreSQL database, until the store is closed; on SQLite does nothing.

        Args:
            name: The name of the replica.
            version: The version of fedround.
            listener: Is told of other replicas, and what they change, in a thread.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        return self._database.join(name, version, listener) if self._database.is_postgres else None

    def now(self) -> datetime:
        """Returns the time by the clock of the database that replicas share, else by that of the machine."""
        return self._database.clock.now()

    @property
    def is_fresh(self) -> bool:
        """Whether this process knows of changes of credentials by other replicas, but for the last seconds."""
        return lease.is_fresh

    @property
    def has_lease(self) -> bool:
        """Whether this process may use the database: it needs no lease, or has one."""
        return lease.replica_id is None or lease.is_held

    @property
    def replica_id(self) -> str | None:
        """The id of this replica; None if it is none."""
        return lease.replica_id

    def start_draining(self) -> None:
        """Leaves the rounds that are closed from now on to other replicas."""
        lease.is_draining = True

    async def hold(self) -> None:
        """Makes sure that this process still holds the server lock of the database.

        Raises:
            RuntimeError: Servers with their files elsewhere have taken the database since it was restarted.
            StoreUnavailable: The database does not answer, or another server has it for itself while it starts.
        """
        await self._database.hold()
