"""The files of rounds' models are read once, kept for a short time, and lent only while there is room."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aggregations import FED_AVG
from fedround_server.coordinator import inline_models
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.inline_models import MAX_INLINE_BYTES, SENDING_BYTES, InlineModels
from fedround_server.coordinator.model import Models
from fedround_server.counters import Counters
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import ModelDamaged, StoreUnavailable
from fedround_server.domain.event import ModelInfo, RoundStarted
from fedround_server.domain.model import BaseAndDelta, BlobRef

FILE = b"a file of two chunks"
BLOB = BlobRef("0" * 64, len(FILE))
STARTED = RoundStarted(0, "TRAIN", ModelInfo("m", 0, BLOB), None, FED_AVG, (), asked=True)
LIMIT = MAX_INLINE_BYTES


@dataclass
class Stored:
    """Models that are read when the test says so, and how often they are."""

    reads: int = 0
    error: Exception | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def find_file(self, *_: Any) -> Any:
        return BLOB  # all that is asked of it is its digest

    async def read(self, *_: Any) -> AsyncGenerator[Chunk, None]:
        self.reads += 1
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        yield Chunk(FILE[:7], 0)
        yield Chunk(FILE[7:], 0)


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def models(stored: Stored, counters: Counters) -> InlineModels:
    return InlineModels(cast(Context, SimpleNamespace(counters=counters)), cast(Models, stored))


async def lent(models: InlineModels, started: RoundStarted = STARTED, limit: int = LIMIT, sent: str = "") -> Any:
    async with models.lend(started, "user", limit, sent) as model:
        return model and model.file


async def test_a_file_is_read_once_whoever_leaves_meanwhile(
    models: InlineModels, stored: Stored, counters: Counters
) -> None:
    tasks = [asyncio.create_task(lent(models)) for _ in range(3)]
    while not stored.reads:
        await asyncio.sleep(0)
    tasks[0].cancel()
    stored.ready.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [FILE, FILE]
    assert await lent(models) == FILE
    assert (stored.reads, counters.sent_bytes) == (1, 3 * len(FILE))


async def test_what_was_not_sent_is_not_counted(models: InlineModels, stored: Stored, counters: Counters) -> None:
    stored.ready.set()
    with pytest.raises(ConnectionError):
        async with models.lend(STARTED, "user", LIMIT):
            raise ConnectionError
    assert counters.sent_bytes == 0


@pytest.mark.parametrize(
    ("started", "limit", "sent"),
    [
        (replace(STARTED, asked=False), LIMIT, ""),
        (replace(STARTED, assigned=True), LIMIT, ""),
        (replace(STARTED, model=ModelInfo("m", 1, BaseAndDelta("1" * 64, 9, BLOB, BLOB))), LIMIT, ""),
        (STARTED, len(FILE) - 1, ""),
        (STARTED, LIMIT, BLOB.sha256),
    ],
    ids=["not asked", "assigned", "delta", "too large", "sent before"],
)
async def test_none_is_lent(models: InlineModels, stored: Stored, started: RoundStarted, limit: int, sent: str) -> None:
    stored.ready.set()
    assert await lent(models, started, limit, sent) is None
    assert stored.reads == 0


async def test_a_damaged_file_is_read_once(models: InlineModels, stored: Stored, counters: Counters) -> None:
    stored.error = ModelDamaged("the model", "objects/00/00", "is damaged")
    stored.ready.set()
    assert [await lent(models) for _ in range(3)] == [None] * 3
    assert (stored.reads, counters.sent_bytes) == (1, 0)


async def test_an_error_that_passes_is_not_kept(models: InlineModels, stored: Stored) -> None:
    stored.error = StoreUnavailable("the database does not answer")
    stored.ready.set()
    found = await asyncio.gather(lent(models), lent(models), return_exceptions=True)
    assert [type(error) for error in found] == [StoreUnavailable] * 2
    stored.error = None
    assert await lent(models) == FILE
    assert stored.reads == 2


async def test_slow_subscribers_do_not_fill_the_memory(
    models: InlineModels, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_models, "SENDING_BYTES", 2 * len(FILE) + 1)
    stored.ready.set()
    async with models.lend(STARTED, "slow", LIMIT) as first, models.lend(STARTED, "slower", LIMIT) as second:
        # They share the bytes.
        assert first is second is not None
        assert await lent(models) is None
    assert await lent(models) == FILE
    assert SENDING_BYTES > LIMIT


async def test_a_file_that_is_not_sent_is_dropped(
    models: InlineModels, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_models, "KEEP_SECONDS", 0.0)
    stored.ready.set()
    assert await lent(models) == FILE
    while models._entries:
        await asyncio.sleep(0)
    assert await lent(models) == FILE
    assert stored.reads == 2


async def test_a_few_files_are_kept(models: InlineModels, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_models, "CACHE_BYTES", 2 * len(FILE))
    stored.ready.set()
    for number in (0, 1, 2, 2, 1, 0):
        blob = BlobRef(f"{number:064}", len(FILE))
        assert await lent(models, replace(STARTED, model=ModelInfo("m", number, blob))) == FILE
    assert (stored.reads, len(models._entries)) == (4, 2)
