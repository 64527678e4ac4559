"""A store on each database."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.planned import planning
from contracts.unrecorded import unrecorded_changes
from contracts.world import World
from fedround_server.blobs.objects import patient, removal
from fedround_server.store import Store
from fedround_server.store.db.group_commit import Attempt, Transactions


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test whose verbs change something without an entry in the audit log."""
    with unrecorded_changes(monkeypatch) as unrecorded:
        yield unrecorded
    assert unrecorded == []


@pytest.fixture(autouse=True)
def wasteful(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test whose verbs read whole tables, or whole histories."""
    with planning(monkeypatch) as wasteful:
        yield wasteful
    assert wasteful == []


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has requests to an object store repeated at once."""
    monkeypatch.setattr(patient, "FIRST_DELAY", 0.0001)
    monkeypatch.setattr(removal, "POLL_SECONDS", 0.0001)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with all migrations, which others are copies of."""
    path = tmp_path_factory.mktemp("template") / "fedround.db"
    with Store(path):
        pass
    return path


@pytest.fixture
def store(database: str, tmp_path: Path, migrated_file: Path) -> Iterator[Store]:
    path = tmp_path / "fedround.db"
    if not database:
        shutil.copy(migrated_file, path)
    with Store(database or path) as store:
        yield store


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the verbs that are run from now on."""
    found: list[str] = []
    run = Transactions._run

    def noted(self: Transactions, attempt: Attempt) -> Any:
        found.extend(call.name for call in attempt.calls)
        return run(self, attempt)

    monkeypatch.setattr(Transactions, "_run", noted)
    return found


@pytest.fixture
def world(store: Store) -> World:
    return World(store)
