"""The audit log of a store, as a reader sees it who does not trust the server."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fedround_client.audit_chain import AuditReport, verify
from fedround_client.audit_entry import AuditEntry, AuditHead
from fedround_server.domain.audit import EPOCH
from fedround_server.domain.audit import AuditEntry as Entry
from fedround_server.domain.audit import AuditHead as Head
from fedround_server.store import Store


async def chained(store: Store) -> list[AuditEntry]:
    """All entries, as the client has them, in the order of time."""
    entries = [item for item in await read_log(store) if isinstance(item, AuditEntry)]
    return sorted(entries, key=lambda entry: entry.time_us)


async def chain_of(store: Store, training_id: str) -> list[AuditEntry]:
    """All entries of the chain of a training."""
    return [_entry(entry) for entry in await store.audit.read(training_id, 0, 1 << 62, 1_000_000)]


async def read_log(store: Store) -> list[AuditEntry | AuditHead]:
    """The entries of all chains, each with its head, as the client has them."""
    head = await store.audit.head()
    entries = await store.audit.read("", 0, 1 << 62, 1_000_000)
    page = await store.audit.read_on("", 0, head.sequence, 1_000_000)
    return [_item(item) for item in [*entries, head, *page.items]]


def _item(item: Entry | Head) -> AuditEntry | AuditHead:
    return AuditHead(item.sequence, item.hash, item.chain) if isinstance(item, Head) else _entry(item)


def _entry(entry: Entry) -> AuditEntry:
    return AuditEntry(
        entry.sequence,
        round((entry.time - EPOCH).total_seconds() * 1_000_000),
        entry.user_id,
        entry.action,
        entry.training_id,
        entry.model_id,
        entry.subject,
        entry.facts,
        entry.previous_hash,
        entry.hash,
        entry.chain,
    )


async def check(store: Store, anchor: AuditHead | None = None) -> AuditReport:
    """Verifies the log."""
    return verify(await read_log(store), anchor)


async def recorded(store: Store, action: str) -> list[dict[str, Any]]:
    """The facts of the entries of an action."""
    return [
        {**json.loads(entry.facts), "subject": entry.subject, "user_id": entry.user_id}
        for entry in await chained(store)
        if entry.action == action
    ]


async def tamper(store: Store, change: Callable[[], object]) -> None:
    """Changes rows behind the server's back."""
    database = store._database

    def work() -> None:
        with database._transactions.begin():
            change()

    await asyncio.get_running_loop().run_in_executor(database._executor, work)
