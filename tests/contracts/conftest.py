"""A store on each database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.planned import planning
from contracts.unrecorded import unrecorded_changes
from contracts.world import World
from fedround_server.store import Store


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


@pytest.fixture
def store(database: str, tmp_path: Path) -> Iterator[Store]:
    with Store(database or tmp_path / "fedround.db") as store:
        yield store


@pytest.fixture
def world(store: Store) -> World:
    return World(store)
