"""A store on each database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.noted import noting_verbs
from contracts.planned import planning
from contracts.world import World
from fedround_server.store import Store


@pytest.fixture(autouse=True)
def unnoted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test whose verbs change something without a word in the audit log."""
    with noting_verbs(monkeypatch) as unnoted:
        yield unnoted
    assert unnoted == []


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
