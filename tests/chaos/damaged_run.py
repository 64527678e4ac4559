"""The data and history of a run of servers and clients, to be damaged."""

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.facts import load
from chaos.history import Entry, History
from chaos.invariants import check


@dataclass
class DamagedRun:
    """The data and history of a finished run, to be damaged and checked."""

    data_dir: Path
    history: History

    def sql(self, statement: str, *values: Any) -> None:
        """Changes the database; a change that changes nothing is a mistake of the test."""
        with closing(sqlite3.connect(self.data_dir / "fedround.db")) as connection:
            changed = connection.execute(statement, values).rowcount
            connection.commit()
        assert changed != 0, statement

    def one(self, query: str) -> Any:
        """The first row that a query finds."""
        with closing(sqlite3.connect(self.data_dir / "fedround.db")) as connection:
            found = connection.execute(query).fetchone()
        assert found is not None, query
        return found

    def blob(self, digest: str) -> Path:
        return self.data_dir / "objects" / digest[:2] / digest

    def replace_blob(self, digest: str) -> str:
        """Makes a blob with another number in its last tensor, under the right name."""
        data = bytearray(self.blob(digest).read_bytes())
        data[-1] ^= 1
        changed = hashlib.sha256(data).hexdigest()
        self.blob(changed).parent.mkdir(exist_ok=True)
        self.blob(changed).write_bytes(data)
        return changed

    def acknowledge(self, kind: str, **facts: Any) -> None:
        """Adds an entry to the clients' history."""
        self.history.entries.append(Entry(kind, facts))

    def check(self) -> set[str]:
        """The rules that are broken."""
        return {violation.rule for violation in check(load("", self.data_dir), self.history)}


Damage = Callable[[DamagedRun], None]
DAMAGES: list[tuple[str, Damage]] = []


def breaks(rule: str) -> Callable[[Damage], Damage]:
    """Registers a damage with the rule that must notice it."""

    def register(damage: Damage) -> Damage:
        DAMAGES.append((rule, damage))
        return damage

    return register
