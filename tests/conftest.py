"""Databases for every test that needs a real one, and how examples are drawn."""

import gc
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from forked import ONE_THREAD
from postgres import Postgres, create_database
from sizes import IS_LONG

# A machine that is busy with something else is no failure, and only long runs draw new examples each time.
settings.register_profile(
    "fedround", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=not IS_LONG
)
settings.load_profile("fedround")
# Halves the tests of the store, so it must be requested: otherwise they fail where PostgreSQL is missing.
WITHOUT = "FEDROUND_TEST_WITHOUT_POSTGRES"
# Tests run at the same time: more threads of torch and NumPy would wait for each other.
os.environ.update(ONE_THREAD)
# The files that take longest, and then the folders that do, come first: the last files decide how long the processes
# that have nothing left to do are idle.
LONG_FILES = {
    *("test_auth", "test_batching", "test_bombs", "test_canaries", "test_command"),
    *("test_demo_run", "test_failed_starts", "test_fuzz_port", "test_growth", "test_inference", "test_joined"),
    *("test_kills", "test_machine", "test_matrix", "test_prediction", "test_readme"),
    *("test_round", "test_round_machine", "test_start", "test_storage_faults", "test_training"),
    *("test_simulation_run", "test_uncertainty", "test_uploads", "test_worker", "test_worker_killed"),
}
LONG_FOLDERS = ("chaos", "e2e", "demo", "contracts", "service")


def pytest_configure() -> None:
    """Has signals end the processes that tests start, also where a shell, or nohup, has started the tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector off what is imported and collected, all of which it would visit again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the files without a serial test where only these run: importing all takes as long as they do."""
    if not config.option.markexpr.endswith("and serial") or collection_path.suffix != ".py":
        return None
    return "mark.serial" not in collection_path.read_text() or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first."""
    order = {folder: position for position, folder in enumerate(LONG_FOLDERS)}
    items.sort(key=lambda item: (item.path.stem not in LONG_FILES, order.get(item.path.parent.name, len(order))))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an embedded PostgreSQL server, without a database name behind the slash.

    Its databases don't outlive the tests. Those that kill PostgreSQL start one of their own, with the settings of
    production.
    """
    if WITHOUT in os.environ:
        pytest.skip(f"{WITHOUT} is set")
    with public_folder() as folder, Postgres(folder / "postgres", is_kept=False) as server:
        yield server.uri


@contextmanager
def public_folder() -> Iterator[Path]:
    """A temporary folder that other users may enter, as the embedded PostgreSQL must: root starts it as another user.

    Whenever pytest starts, it closes the parent of all `tmp_path` to other users, even while another run uses it.
    """
    with tempfile.TemporaryDirectory(prefix="fedround-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """The URL of a database with all migrations, which others are copies of."""
    from fedround_server.store import Store

    url = create_database(postgres)
    with Store(url):
        pass
    return url


@pytest.fixture
def copied(database: str, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Copies the test's database; call it while no server runs on it. SQLite's is copied with the data directory."""
    return lambda: create_database(request.getfixturevalue("postgres"), database) if database else ""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """The value of --database: empty for SQLite, or the URL of a new PostgreSQL database with all migrations."""
    if request.param == "sqlite":
        return ""
    return create_database(request.getfixturevalue("postgres"), request.getfixturevalue("template"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest) -> str:
    """Like `database`, but without any table."""
    return "" if request.param == "sqlite" else create_database(request.getfixturevalue("postgres"))


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
