"""The history of the clients: every acknowledgement that they received, stored outside of the server."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One response or event that a client received: its kind, and the facts."""

    kind: str
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]


@dataclass
class History:
    """Entries in the order in which they came, also in a file."""

    path: Path
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._file = self.path.open("a", buffering=1)

    def add(self, kind: str, **facts: Any) -> None:
        with self._lock:
            self.entries.append(Entry(kind, facts))
            self._file.write(json.dumps({"kind": kind, **facts}) + "\n")

    def of(self, kind: str) -> Iterator[Entry]:
        with self._lock:
            found = [entry for entry in self.entries if entry.kind == kind]
        yield from found

    def about(self, training_id: str) -> list[str]:
        """The lines about one training, for people."""
        return [f"{e.kind} {e.facts}" for e in self.entries if e.facts.get("training_id") == training_id]

    def close(self) -> None:
        self._file.close()
