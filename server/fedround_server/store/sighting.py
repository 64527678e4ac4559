"""Verbs about when users were seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fedround_server.store import steps
from fedround_server.store.database import Database, verb
from fedround_server.store.schema import SightingRow


@dataclass(frozen=True, slots=True)
class SightingVerbs:
    """What the store does with sightings."""

    database: Database

    @verb
    def note(self, seen: Mapping[str, datetime]) -> None:
        """Keeps when users were seen last, by id."""
        rows = [{"user_id": user_id, "seen_time": seen[user_id]} for user_id in sorted(seen)]
        for start in range(0, len(rows), steps.BATCH):
            SightingRow.insert_many(rows[start : start + steps.BATCH]).on_conflict(
                conflict_target=[SightingRow.user_id], preserve=[SightingRow.seen_time]
            ).execute()
