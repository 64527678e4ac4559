"""Where a server says that its data is."""

from pathlib import Path

import pytest

from fedround_server.__main__ import places
from fedround_server.config import Settings


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, ""),
        ({"database": "postgresql://user:secret@db/fedround"}, " and in PostgreSQL at db:5432/fedround"),
        (
            {"database": "postgresql://user:secret@db:5433/fedround", "objects": "s3://bucket/prefix"},
            ", in PostgreSQL at db:5433/fedround and in s3://bucket/prefix",
        ),
    ],
)
def test_all_places_are_named_without_passwords(tmp_path: Path, options: dict[str, str], more: str) -> None:
    assert places(Settings(data_dir=tmp_path, **options)) == f"{tmp_path.resolve()}{more}"  # type: ignore[arg-type]
