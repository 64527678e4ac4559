"""Denied calls in the audit log: the first at once, repeated ones as one entry, in a bounded number of groups."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contracts.audits import chained, check, recorded
from contracts.coordination import Coordination, coordinating, lose
from contracts.world import new_id
from fedround_server.coordinator.denied_calls import (
    FLUSH_INTERVAL,
    GROUP_INTERVAL,
    MAX_AUTHENTICATED,
    MAX_UNAUTHENTICATED,
    RETRY_INTERVAL,
    DeniedCalls,
)
from fedround_server.domain.audit import acting
from fedround_server.domain.errors import (
    FieldInvalid,
    RoleRequired,
    StoreUnavailable,
    TokenInvalid,
    TrainingNotFound,
    UpdateExists,
)
from fedround_server.store import Store
from fedround_server.store.verbs.audit import AuditVerbs

METHOD = "/fedround.v1.RoundService/SubmitUpdate"
PEER = "ipv4:10.0.0.1:40000"


@pytest.fixture
async def coordination(store: Store, tmp_path: Path) -> AsyncIterator[Coordination]:
    async with coordinating(store, tmp_path) as coordination:
        yield coordination


@pytest.fixture
def calls(coordination: Coordination) -> DeniedCalls:
    return coordination.coordinator.audit.denied_calls


async def denied(store: Store) -> list[tuple[str, str, str, int]]:
    return [(one["subject"], one["peer"], one["reason"], one["count"]) for one in await recorded(store, "call_refused")]


async def test_the_first_call_is_written_at_once_and_repeated_ones_as_one_entry(
    store: Store, coordination: Coordination, calls: DeniedCalls
) -> None:
    user = new_id()
    acting.set(user)
    for _ in range(3):
        calls.record(METHOD, PEER, RoleRequired("no"))
        await calls.flush()
    assert await denied(store) == [(user, "", "ROLE_REQUIRED", 1)]
    coordination.clock.advance(GROUP_INTERVAL)
    await calls.flush()
    assert await denied(store) == [(user, "", "ROLE_REQUIRED", 1), (user, "", "ROLE_REQUIRED", 2)]
    coordination.clock.advance(GROUP_INTERVAL)
    await calls.flush()
    calls.record(METHOD, PEER, RoleRequired("no"))
    await calls.flush()
    assert [count for *_, count in await denied(store)] == [1, 2, 1]
    await check(store)


async def test_an_entry_has_ids_and_nothing_else_that_the_caller_chose(store: Store, calls: DeniedCalls) -> None:
    acting.set(new_id())
    update_id, training_id = new_id(), new_id()
    calls.record(METHOD, PEER, UpdateExists("a secret", update_id=update_id, note="a secret"))
    calls.record(METHOD, PEER, TrainingNotFound(training_id))
    calls.record(METHOD, PEER, FieldInvalid("a secret", "a secret"))
    await calls.flush()
    found = await recorded(store, "call_refused")
    assert [one["ids"] for one in found] == [{"update_id": update_id}, {"id": training_id}, {}]
    assert {one["method"] for one in found} == {METHOD}
    assert "a secret" not in str(found)


async def test_an_unauthenticated_peer_is_named_by_its_address_alone(store: Store, calls: DeniedCalls) -> None:
    acting.set("")
    for port in range(5):
        calls.record(f"{METHOD}{port}", f"ipv6:[::1]:{port}", TokenInvalid())
    calls.record(METHOD, PEER, TokenInvalid())
    await calls.flush()
    assert await denied(store) == [("", "ipv6:[::1]", "TOKEN_INVALID", 5), ("", "ipv4:10.0.0.1", "TOKEN_INVALID", 1)]


async def test_the_number_of_groups_is_bounded(store: Store, coordination: Coordination, calls: DeniedCalls) -> None:
    acting.set("")
    for number in range(MAX_UNAUTHENTICATED + 10):
        calls.record(METHOD, f"ipv4:10.0.0.{number}:1", TokenInvalid())
    for _ in range(MAX_AUTHENTICATED + 7):
        acting.set(new_id())
        calls.record(METHOD, PEER, RoleRequired("no"))
    await calls.flush()
    found = await denied(store)
    assert len(found) == MAX_UNAUTHENTICATED + 1 + MAX_AUTHENTICATED + 1
    assert sorted(count for _, _, reason, count in found if reason == "others") == [7, 10]
    coordination.clock.advance(GROUP_INTERVAL)
    await calls.flush()
    assert not calls._authenticated
    assert not calls._unauthenticated


async def test_failures_of_the_server_are_no_denied_calls(store: Store, calls: DeniedCalls) -> None:
    calls.record(METHOD, PEER, StoreUnavailable("try again"))
    await calls.flush(everything=True)
    assert await denied(store) == []


async def test_calls_that_cannot_be_written_are_written_later(
    store: Store, calls: DeniedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting.set(new_id())
    calls.record(METHOD, PEER, RoleRequired("no"))
    lose(monkeypatch, AuditVerbs, "add", committed=False)
    await calls.flush()
    assert await denied(store) == []
    await calls.flush()
    assert [count for *_, count in await denied(store)] == [1]


async def test_a_server_records_its_start_and_stop_and_writes_what_is_left_before_it(
    store: Store, coordination: Coordination, calls: DeniedCalls
) -> None:
    audit = coordination.coordinator.audit
    await audit.start()
    acting.set(new_id())
    for _ in range(2):
        calls.record(METHOD, PEER, RoleRequired("no"))
        await calls.flush()
    acting.set("")
    await audit.stop()
    entries = await store.audit.read("", 0, 100, 100)
    assert [entry.action for entry in entries] == ["server_started", "call_refused", "call_refused", "server_stopped"]


async def test_denied_calls_are_written_in_the_background_within_seconds(
    store: Store, coordination: Coordination
) -> None:
    await coordination.coordinator.audit.start()
    await coordination.clock.asleep(FLUSH_INTERVAL)
    acting.set(new_id())
    coordination.coordinator.audit.denied_calls.record(METHOD, PEER, RoleRequired("no"))
    coordination.clock.advance(FLUSH_INTERVAL)
    await coordination.clock.asleep(FLUSH_INTERVAL)
    assert len(await denied(store)) == 1


async def test_what_follows_the_last_update_is_recorded_as_done_by_the_server(
    store: Store, coordination: Coordination
) -> None:
    actor, (client,), training = await coordination.running(1, target_num_updates=1)
    acting.set(client)
    await coordination.submit(training.training_id, 0, client)
    acting.set("")
    await coordination.until(actor, training.training_id, lambda found: found.state.is_ended)
    by: dict[str, Any] = {entry.action: entry.user_id for entry in await chained(store)}
    assert (by["update_accepted"], by["round_closed"]) == (client, client)
    assert (by["updates_counted"], by["version_made"], by["training_completed"]) == ("", "", "")


async def test_a_database_that_does_not_answer_is_asked_less_often(
    store: Store, coordination: Coordination, calls: DeniedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting.set(new_id())
    calls.record(METHOD, PEER, RoleRequired("no"))
    lose(monkeypatch, AuditVerbs, "add", committed=False)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(calls.run())
        for interval, count in ((FLUSH_INTERVAL, 0), (RETRY_INTERVAL, 0), (FLUSH_INTERVAL, 1)):
            await coordination.clock.asleep(interval)
            assert len(await denied(store)) == count
            coordination.clock.advance(interval)
        running.cancel()
