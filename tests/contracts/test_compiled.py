"""Compiled queries find what the queries find that they are made of."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from peewee import ModelSelect

from contracts.world import World
from fedround_server.store.db.audit_trail import record
from fedround_server.store.db.compiled import compiled
from fedround_server.store.db.rows import insert, locked, save
from fedround_server.store.tables.base import Row
from fedround_server.store.tables.schema import CohortRow, EventRow, ModelVersionRow, TokenRow, UserRow

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def columns(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else dict(row.__data__)


async def run(world: World, compare: Callable[[], None]) -> None:
    """Runs a comparison, which changes rows, as a verb with a record."""

    def verb() -> None:
        record("tested")
        compare()

    await world.store._database.run(verb)


def user(name: str) -> UserRow:
    return UserRow(user_id=name, name=f"user {name}", role="CLIENT", create_time=NOW, remove_time=None)


def member(user_id: str, number: int, *, removed: bool) -> CohortRow:
    return CohortRow(training_id="one", number=number, user_id=user_id, removed=removed, ask_time=NOW)


def members(training_id: str, number: int, removed: bool, asked: datetime) -> "ModelSelect[CohortRow]":
    fitting = CohortRow.removed == removed, CohortRow.ask_time == asked
    rows = CohortRow.select().where(CohortRow.training_id == training_id, CohortRow.number >= number, *fitting)
    return rows.order_by(CohortRow.number, CohortRow.user_id)


def some(first: str, second: str, limit: int) -> "ModelSelect[UserRow]":
    """A parameter in a list, a limit, a subquery, and some of the fields."""
    inside = CohortRow.select(CohortRow.user_id).where(CohortRow.user_id == first)
    rows = UserRow.select(UserRow.user_id, UserRow.create_time).where(
        UserRow.user_id.in_([first, second, "b"]) | UserRow.user_id.in_(inside), UserRow.remove_time.is_null()
    )
    return locked(rows.order_by(UserRow.name.desc()).limit(limit))


CASES: list[tuple[Any, list[tuple[Any, ...]]]] = [
    (members, [("one", 0, False, NOW), ("one", 1, True, NOW), ("two", 0, False, NOW)]),
    (some, [("a", "c", 2), ("c", "c", 5), ("d", "e", 1)]),
]


@pytest.mark.parametrize(("build", "asked"), CASES, ids=["members", "some"])
async def test_a_compiled_query_finds_what_the_query_finds(
    world: World, build: Any, asked: list[tuple[Any, ...]]
) -> None:
    query = compiled(build)

    def compare() -> None:
        insert(user("a"), user("b"), user("c"))
        insert(member("a", 0, removed=False), member("b", 1, removed=True), member("c", 2, removed=False))
        for args in asked:
            plain, found = list(build(*args)), query.all(*args)
            assert [columns(row) for row in found] == [columns(row) for row in plain]
            assert columns(query.first(*args)) == (columns(plain[0]) if plain else None)
            assert not any(row.is_dirty() for row in found)
        if not plain:
            with pytest.raises(LookupError):
                query.one(*asked[-1])

    await run(world, compare)


async def test_what_is_inserted_is_read_back_by_a_plain_query(world: World) -> None:
    rows = [
        EventRow(
            training_id="one", sequence=1, kind="k", audience="all", number=None, payload={"a": [1]}, create_time=NOW
        ),
        ModelVersionRow(
            model_id="m",
            version=0,
            sha256="0",
            size_bytes=2**40,
            checksums=b"\x00\xff",
            create_time=NOW,
            stored=True,
            delta_sha256=None,
            delta_size_bytes=None,
            delta_checksums=None,
        ),
    ]

    def compare() -> None:
        for row in rows:
            insert(row)
            assert not row.is_dirty()
            assert columns(type(row).get()) == columns(row)

    await run(world, compare)


async def test_saving_writes_what_was_set_and_nothing_else(world: World) -> None:
    def compare() -> None:
        insert(member("a", 0, removed=False), member("a", 1, removed=False))
        row = CohortRow.get(CohortRow.number == 1)
        CohortRow.update(removed=True).execute()
        save(row)
        row.ask_time = NOW.replace(year=2027)
        save(row)
        first, second = CohortRow.select().order_by(CohortRow.number)
        assert (first.removed, first.ask_time) == (True, NOW)
        assert (second.removed, second.ask_time) == (True, row.ask_time)
        assert not row.is_dirty()

    await run(world, compare)


async def test_a_query_of_two_tables_cannot_be_compiled(world: World) -> None:
    @compiled
    def both(user_id: str) -> "ModelSelect[TokenRow]":
        joined = TokenRow.select(TokenRow, UserRow).join(UserRow, on=(TokenRow.user_id == UserRow.user_id))
        return joined.where(UserRow.user_id == user_id)

    def ask() -> None:
        with pytest.raises(TypeError, match="TokenRow alone"):
            both.all("a")

    await world.store._database.run(ask)
