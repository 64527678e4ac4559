"""Verbs about when users were seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fedround_server.store.db.run import Database, verb
from fedround_server.store.tables.base import BATCH_ROWS
from fedround_server.store.tables.schema import LastSeenRow


@dataclass(frozen=True, slots=True)
class SightingVerbs:
    """What the store does with sightings."""

    database: Database

    @verb
    def note(self, seen: Mapping[str, datetime]) -> None:
        """Keeps when users were seen last, by id."""
        rows = [{"user_id": user_id, "seen_time": seen[user_id]} for user_id in sorted(seen)]
        for start in range(0, len(rows), BATCH_ROWS):
            LastSeenRow.insert_many(rows[start : start + BATCH_ROWS]).on_conflict(
                conflict_target=[LastSeenRow.user_id], preserve=[LastSeenRow.seen_time]
            ).execute()
