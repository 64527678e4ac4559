"""Copies of SQLite databases in PostgreSQL."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from contracts.world import World
from fedround_server import database as command
from fedround_server.host.file_lock import locked_folder
from fedround_server.store import Store
from fedround_server.store.db import copy
from fedround_server.store.db.connection import database_name, is_empty
from fedround_server.store.tables.base import Row
from fedround_server.store.tables.schema import TABLES
from postgres import create_database


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    return create_database(request.getfixturevalue("postgres"))


@pytest.fixture
async def source(tmp_path: Path, migrated_file: Path) -> Path:
    """A data directory whose database has an open round with an update, and values that are hard to convert."""
    path = tmp_path / "fedround.db"
    path.write_bytes(migrated_file.read_bytes())
    with Store(path) as store:
        world = World(store)
        _, (client, _), training = await world.running(2)
        await world.submit(training.training_id, 0, client)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE round_update SET checksums = ?, num_examples = ?, initial_loss = ?", (b"\0\xff\\", 2**62, 0.1)
        )
        database.execute("UPDATE users SET labels = ?", ('{"a\\\\b":"ü\\t\\n"}',))
    return tmp_path


def run(data_dir: Path, target: str) -> int:
    return command.main(["copy", "--data-dir", str(data_dir), "--database", target])


def rows(found: Any) -> set[tuple[Any, ...]]:
    return {tuple(int(value) if isinstance(value, bool) else value for value in row) for row in found}


def test_all_tables_are_copied() -> None:
    assert set(TABLES) == set(Row.__subclasses__())
    # Counters of the database would have to be set behind the copy.
    assert not [table for table in TABLES if table._meta.auto_increment]


def test_a_copy_has_all_rows(
    source: Path, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others can see arguments.
    monkeypatch.setenv("FEDROUND_DATABASE", target)
    assert command.main(["copy", "--data-dir", str(source)]) == 0
    said = capsys.readouterr()
    assert "--database" in said.out
    assert "participant: 2 rows\n" in said.err
    assert ": 0 rows" not in said.err
    with closing(sqlite3.connect(source / "fedround.db")) as before, psycopg.connect(target) as after:
        for (name,) in before.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = ", ".join(f'"{one[1]}"' for one in before.execute(f"PRAGMA table_info({name})"))
            if name in {table._meta.table_name for table in TABLES}:
                select = f'SELECT {columns} FROM "{name}"'
                assert rows(before.execute(select)) == rows(after.execute(select)), name
    with Store(target):
        pass


def test_a_copy_that_fails_leaves_nothing(
    source: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = copy._Digest.of

    def lossy(self: Any, rows: Any) -> Iterator[tuple[Any, ...]]:
        """The copy lacks the last row of each table."""
        found = list(add(self, rows))
        yield from found[:-1]

    monkeypatch.setattr(copy._Digest, "of", lossy)
    assert run(source, target) == 1
    assert "differs" in capsys.readouterr().err
    assert is_empty(target)


def test_a_copy_is_refused(source: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_folder(source):
        assert run(source, target) == 1
    assert "uses the data directory" in capsys.readouterr().err
    with closing(sqlite3.connect(source / "fedround.db")) as database, database:
        kept = database.execute("SELECT * FROM schema_migration ORDER BY rowid").fetchall()
        database.execute("DELETE FROM schema_migration WHERE rowid = (SELECT max(rowid) FROM schema_migration)")
    assert run(source, target) == 1
    assert "an older version" in capsys.readouterr().err
    with closing(sqlite3.connect(source / "fedround.db")) as database, database:
        database.execute(f"INSERT INTO schema_migration VALUES ({', '.join('?' * len(kept[-1]))})", kept[-1])
    assert is_empty(target)
    assert run(source, target) == 0
    capsys.readouterr()
    assert run(source, target) == 1
    assert f"was copied to {database_name(target)}" in capsys.readouterr().err
    (source / "database.moved").unlink()
    assert run(source, target) == 1
    said = capsys.readouterr().err
    assert "is not empty" in said
    assert "postgresql://" not in said
    assert command.main(["copy", "--data-dir", str(source), "--database", "mysql://user:secret@host/x"]) == 1
    assert "secret" not in capsys.readouterr().err
