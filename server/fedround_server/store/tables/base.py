"""The base of all tables, and the fields that peewee lacks."""

import json
from datetime import UTC, datetime
from typing import Any

from peewee import BigIntegerField, CharField, DatabaseProxy, Model, TextField

BATCH_ROWS = 500
"""Rows of one INSERT, so that no statement has too many parameters."""

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
