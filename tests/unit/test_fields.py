"""Fields with too many values are rejected before they are parsed: that would block the event loop."""

import pytest

from fedround_server.domain.errors import FieldInvalid
from fedround_server.services import fields


def test_too_many_ids_are_counted_first() -> None:
    with pytest.raises(FieldInvalid, match=f"names {fields.MAX_CLIENTS + 1} users"):
        fields.parse_optional_ids("client_ids", [f"no id {number}" for number in range(fields.MAX_CLIENTS + 1)])


def test_too_many_metric_names_are_counted_first() -> None:
    with pytest.raises(FieldInvalid, match=f"has {fields.MAX_METRIC_NAMES + 1} entries"):
        fields.parse_metric_names([""] * (fields.MAX_METRIC_NAMES + 1))
