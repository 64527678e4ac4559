"""The state of a stopped server: its rows and files, read with plain SQL, without the server's code."""

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from chaos.tensors import Tensors, merge, read

Row = dict[str, Any]
JSON_COLUMNS = ("manifest", "spec", "metrics", "payload", "details", "failure_missing", "labels")


@dataclass
class Facts:
    """The tables by name, and where the files are."""

    tables: dict[str, list[Row]]
    data_dir: Path
    _read: Callable[[str], Tensors] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._read = cache(lambda digest: read(self.path(digest).read_bytes()))

    def __getitem__(self, table: str) -> list[Row]:
        return self.tables[table]

    def by(self, table: str, *columns: str) -> dict[Hashable, list[Row]]:
        """The rows of a table by the values of some columns; by one value if there is one column."""
        found: dict[Hashable, list[Row]] = defaultdict(list)
        for row in self.tables[table]:
            key = tuple(row[column] for column in columns)
            found[key if len(columns) > 1 else key[0]].append(row)
        return found

    def path(self, digest: str) -> Path:
        return self.data_dir / "objects" / digest[:2] / digest

    def tensors(self, digest: str) -> Tensors:
        return self._read(digest)

    def version(self, row: Row) -> Tensors:
        """The tensors of a version, whose whole file must have the digest of its row."""
        if row["delta_sha256"] is None:
            return self.tensors(row["sha256"])
        base, delta = (self.path(digest).read_bytes() for digest in (self._base(row), row["delta_sha256"]))
        file = merge(base, delta)
        if (hashlib.sha256(file).hexdigest(), len(file)) != (row["sha256"], row["size_bytes"]):
            raise ValueError(f"the base and the delta are not the file {row['sha256']}")
        return read(file)

    def _base(self, row: Row) -> str:
        [base] = self.by("model_base", "model_id")[row["model_id"]]
        return str(base["sha256"])

    @cached_property
    def trainings(self) -> dict[str, Row]:
        return {row["training_id"]: row for row in self["training"]}

    @cached_property
    def posteriors(self) -> dict[tuple[str, int], str]:
        """The digest of the posterior of each (model, version)."""
        found = (row for row in self["artifact"] if row["kind"] == "posterior")
        return {(row["model_id"], row["version"]): row["sha256"] for row in found}

    @cached_property
    def states(self) -> dict[Hashable, dict[str, Row]]:
        """The state of each (model, version): artifacts by slot."""
        return {
            key: {row["kind"]: row for row in rows if row["kind"] != "posterior"}
            for key, rows in self.by("artifact", "model_id", "version").items()
        }

    @cached_property
    def counted(self) -> dict[Hashable, list[Row]]:
        """What counts in each (training, round), in canonical order: the updates of members that are not removed."""
        present = {(row["training_id"], row["number"], row["user_id"]) for row in self["cohort"] if not row["removed"]}
        found: dict[Hashable, list[Row]] = defaultdict(list)
        for row in sorted(self["round_update"], key=lambda row: row["user_id"]):
            if (row["training_id"], row["number"], row["user_id"]) in present:
                found[row["training_id"], row["number"]].append(row)
        return found

    @cached_property
    def entries(self) -> list[Row]:
        """The audit log in the order of time: a change that waited for another one has a later time."""
        return sorted(self["audit"], key=lambda row: (row["time"], row["sequence"]))

    @cached_property
    def lost(self) -> dict[str, Row]:
        """The entry of the ledger about each update that was lost, since its file was damaged, by the update's id."""
        superseded = (row for row in self["audit"] if row["action"] == "updates_superseded")
        found = ((row, json.loads(row["facts"])) for row in superseded)
        return {id_: row for row, facts in found if facts["reason"] == "file_damaged" for id_ in facts["update_ids"]}

    @cached_property
    def events(self) -> dict[Hashable, list[Row]]:
        """The log of each training, in order."""
        logs = self.by("event", "training_id")
        return {key: sorted(rows, key=lambda row: row["sequence"]) for key, rows in logs.items()}


def load(database: str, data_dir: Path) -> Facts:
    """Reads everything; nothing may write at the same time."""
    return Facts(_postgres(database) if database else _sqlite(data_dir / "fedround.db"), data_dir)


def _sqlite(path: Path) -> dict[str, list[Row]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: _decoded(connection.execute(f"SELECT * FROM {name}")) for name in names}


def _postgres(url: str) -> dict[str, list[Row]]:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url, row_factory=dict_row) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        names = [row["tablename"] for row in tables]
        return {name: _decoded(connection.execute(f"SELECT * FROM {name}")) for name in names}


def _decoded(rows: Iterable[Any]) -> list[Row]:
    found = [dict(row) for row in rows]
    for row in found:
        for column in JSON_COLUMNS:
            if isinstance(row.get(column), str):
                row[column] = json.loads(row[column])
    return found
