"""Where the tests of whole systems run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Server

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves PostgreSQL to `make chaos`: the contract tests and the kills of `make test` run on both databases."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.parent == HERE and params.get("database") == "postgresql":
            item.add_marker(pytest.mark.chaos)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on SQLite for all tests of a file."""
    with Server(tmp_path_factory.mktemp("server") / "data") as running:
        yield running
