"""Transactions about the server as a whole."""

from fedround_server.store.db.run import Verbs, verb
from fedround_server.store.queries.usage import StoreUsage, count_rounds, count_trainings


class ServerVerbs(Verbs):
    """Transactions about the server as a whole."""

    @verb
    def usage(self) -> StoreUsage:
        """Returns what the database holds."""
        kind = "postgresql" if self.database.is_postgres else "sqlite"
        return StoreUsage(kind, self.database.size_bytes(), count_trainings(), count_rounds())
