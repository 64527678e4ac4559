"""The base of all tables, and the fields that peewee lacks."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached
from peewee import BigIntegerField, CharField, DatabaseProxy, Model, TextField

BATCH_ROWS = 500
"""Rows of one INSERT, so that no statement has too many parameters."""
SHARED_CHARACTERS = 4 << 20
"""Characters of the texts whose structures are kept; a structure takes some five times as much memory."""

database_proxy = DatabaseProxy()


class InstantField(BigIntegerField):
    """A point in time, stored as whole microseconds since 1970 UTC, the same in every database."""

    def db_value(self, value: datetime | None) -> int | None:
        """Encodes an aware datetime."""
        if value is None:
            return None
        return round(value.timestamp() * 1_000_000)

    def python_value(self, value: int | None) -> datetime | None:
        """Decodes into an aware datetime in UTC."""
        return None if value is None else datetime.fromtimestamp(value / 1_000_000, UTC)


class JsonField(TextField):
    """A small structure that no query reads into."""

    def db_value(self, value: Any) -> str | None:
        """Encodes with sorted keys; NaN and Inf are refused."""
        return None if value is None else json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))

    def python_value(self, value: str | None) -> Any:
        """Decodes."""
        return None if value is None else json.loads(value)


class SharedJson(dict[str, Any]):
    """A structure that was decoded once for all rows that have the same text; it must not be changed.

    Attributes:
        num_characters: The length of the text.
        read: What a function of the mapping has read from it; None if nothing yet.
    """

    __slots__ = ("num_characters", "read")

    def __init__(self, values: Mapping[str, Any], num_characters: int) -> None:
        super().__init__(values)
        self.num_characters = num_characters
        self.read: Any = None


class SharedJsonField(JsonField):
    """A structure that is read again and again, and rarely written."""

    def python_value(self, value: str | None) -> Any:
        """Decodes, unless it has decoded the same text before."""
        return None if value is None else _decode_shared(value)


@cached(LRUCache(SHARED_CHARACTERS, getsizeof=lambda one: one.num_characters), lock=Lock())
def _decode_shared(text: str) -> SharedJson:
    return SharedJson(json.loads(text), len(text))


class MetricsField(JsonField):
    """Metrics; NaN and infinity are written as Python's json does."""

    def db_value(self, value: Any) -> str | None:
        """Encodes with sorted keys."""
        return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))


def id_field(**options: Any) -> CharField:
    """Declares a UUID in its usual 36 characters."""
    return CharField(max_length=36, **options)


class Row(Model):
    """Base of all tables."""

    _dirty: set[str]  # the stubs lack it

    class Meta:
        """Binds to the open store."""

        database = database_proxy
        legacy_table_names = False
