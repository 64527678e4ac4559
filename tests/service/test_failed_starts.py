"""A server that cannot start says so in one line, which names the file, the disk or the database, and what to do."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from damage import flip
from forked import fork_server
from servers import Server

Start = Callable[..., str]
NEWER = (
    "INSERT INTO schema_migration (id, name, applied) VALUES (99, '0099_later', '2030-01-01')",
    "UPDATE server_state SET oldest_schema = 99",
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that was stopped."""
    with Server(tmp_path_factory.mktemp("stopped") / "data") as server:
        return server.data_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that was killed: all that it did is in the write-ahead log."""
    with Server(tmp_path_factory.mktemp("killed") / "data") as server:
        server.kill()
        copy = server.data_dir.with_name("copy")
        shutil.copytree(server.data_dir, copy)
        server.start()
    return copy


@pytest.fixture
def data(stopped: Path, data_dir: Path) -> Path:
    shutil.copytree(stopped, data_dir)
    return data_dir


in_both_formats = pytest.mark.parametrize("start", ["console", "json"], indirect=True)


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a server that must fail; returns what it says."""
    log_format = getattr(request, "param", "console")

    def run(data_dir: Path, *options: str) -> str:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        flags = ("--listen", "127.0.0.1:0", "--log-level", "warning", "--log-format", log_format)
        process = fork_server().fork(["--data-dir", str(data_dir), *flags, *options], stderr=log)
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
            process.stdout.close()
        (line,) = log.read_text().splitlines()
        if log_format == "console":
            assert line.startswith("error: ")
            return line.removeprefix("error: ")
        entry = json.loads(line)
        assert entry["level"] == "error"
        return str(entry["event"])

    return run


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mounts a folder over itself, read-only."""
    bind = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(bind, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def has(message: str, *words: object) -> bool:
    return all(str(word) in message for word in words)


@in_both_formats
@pytest.mark.parametrize("size", [50_000, 100])
def test_a_database_of_random_bytes(data: Path, start: Start, size: int) -> None:
    (data / "fedround.db").write_bytes(os.urandom(size))
    assert has(start(data), data / "fedround.db", "is damaged", "restore the data directory from a backup")


@pytest.mark.parametrize("left", ["admin.token", "objects/ab/abc"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_database_that_is_gone(data: Path, start: Start, left: str, is_empty: bool) -> None:
    (data / "fedround.db").unlink()
    if is_empty:
        (data / "fedround.db").touch()
    (data / "admin.token").unlink()
    (data / left).parent.mkdir(exist_ok=True)
    (data / left).touch()
    for _ in range(2):
        assert has(start(data), data / "fedround.db", "is missing or empty", data / left, "from a backup", "--database")
    (data / left).unlink()
    with Server(data):
        pass


@pytest.mark.parametrize("part", [slice(0, 40_000), slice(4096, 40_960)])
def test_a_damaged_database(data: Path, start: Start, part: slice) -> None:
    content = bytearray((data / "fedround.db").read_bytes())
    if part.start:
        content[part] = os.urandom(part.stop - part.start)
    else:
        content = content[part]
    (data / "fedround.db").write_bytes(content)
    assert has(start(data), data / "fedround.db", "is damaged", "restore the data directory from a backup")


@pytest.mark.parametrize("left", [-1, -5000, 100, 32, 0, None])
def test_a_write_ahead_log_that_was_cut(killed: Path, data_dir: Path, start: Start, left: int | None) -> None:
    shutil.copytree(killed, data_dir)
    log = data_dir / "fedround.db-wal"
    content = log.read_bytes()
    if left is None:
        log.unlink()
    else:
        log.write_bytes(content[:left])
    message = start(data_dir)
    assert has(message, log, "was cut", "restore the data directory from a backup", "fedround.db-shm")
    # It stays so until somebody decides.
    assert start(data_dir) == message
    (data_dir / "fedround.db-shm").unlink()
    with Server(data_dir):
        pass


@pytest.mark.parametrize("position", [3, 20, 30, 40, 20_000, None])
def test_a_write_ahead_log_that_is_damaged(killed: Path, data_dir: Path, start: Start, position: int | None) -> None:
    shutil.copytree(killed, data_dir)
    log = data_dir / "fedround.db-wal"
    if position is None:
        log.write_bytes(os.urandom(log.stat().st_size))
    else:
        flip(log, position)
    assert has(start(data_dir), log, "damaged", "restore the data directory from a backup", "fedround.db-shm")


def test_a_write_ahead_log_that_is_whole(killed: Path, data_dir: Path) -> None:
    token = (killed / "admin.token").read_text()
    for extra in (b"", b"a frame that was not finished"):
        shutil.copytree(killed, data_dir)
        with (data_dir / "fedround.db-wal").open("ab") as log:
            log.write(extra)
        with Server(data_dir) as server:
            assert server.admin_token == token.strip()
        shutil.rmtree(data_dir)


@in_both_formats
def test_a_database_of_a_newer_version(data: Path, start: Start) -> None:
    with closing(sqlite3.connect(data / "fedround.db")) as connection:
        for statement in NEWER:
            connection.execute(statement)
        connection.commit()
    assert has(start(data), data / "fedround.db", "newer version of fedround", "0099_later", "install that version")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_postgresql_database_that_is_empty(database: str, data_dir: Path, start: Start) -> None:
    data_dir.mkdir(mode=0o700)
    file = data_dir / "objects" / "ab" / "abc"
    file.parent.mkdir(parents=True)
    file.touch()
    for _ in range(2):
        assert has(start(data_dir, "--database", database), "the database refers to no files", file, "--database")
    file.unlink()
    with Server(data_dir, database=database):
        pass


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_postgresql_database_of_a_newer_version(database: str, data_dir: Path, start: Start) -> None:
    with psycopg.connect(database) as connection:
        for statement in NEWER:
            connection.execute(statement)
    message = start(data_dir, "--database", database)
    assert has(message, urlsplit(database).path, "newer version of fedround", "0099_later", "install that version")


@pytest.mark.parametrize("free", [0, 4096, 20_000, 100_000])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk(small_disk: Path, stopped: Path, start: Start, free: int, is_new: bool) -> None:
    data = small_disk / "data"
    if not is_new:
        shutil.copytree(stopped, data)
        # Else it may start: there is nothing to write.
        free //= 5
    disk = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - free))
    assert has(start(data), f"the disk of {data}", "is full", "make room")


@pytest.mark.parametrize("name", ["objects", "objects/ab", "uploads", "tmp", "."])
def test_a_folder_that_is_read_only(data: Path, start: Start, name: str) -> None:
    (data / name).mkdir(exist_ok=True)
    with read_only(data / name):
        assert has(start(data), data / name, "cannot be written", "the server's user", "--data-dir")


@pytest.mark.parametrize("name", ["objects", "uploads", "tmp", "."])
def test_a_file_in_the_place_of_a_folder(data: Path, start: Start, name: str) -> None:
    shutil.rmtree(data / name)
    (data / name).write_text("a file")
    assert has(start(data), f"{data / name} is a file", "move it away", "--data-dir")
    if name == ".":
        assert has(start(data / "below"), f"{data} is a file")


@in_both_formats
@pytest.mark.parametrize("name", ["fedround.db", "admin.token", "tmp/left"])
def test_a_folder_in_the_place_of_a_file(data: Path, start: Start, name: str) -> None:
    with closing(sqlite3.connect(data / "fedround.db")) as connection:
        # A new token is to be written.
        connection.execute("DELETE FROM token")
        connection.commit()
    (data / name).unlink(missing_ok=True)
    (data / name).mkdir()
    assert has(start(data), f"{data / name} is a folder", "move it away")


def test_a_token_file_that_is_read_only(data: Path, start: Start) -> None:
    with closing(sqlite3.connect(data / "fedround.db")) as connection:
        connection.execute("DELETE FROM token")
        connection.commit()
    with read_only(data / "admin.token"):
        assert has(start(data), data / "admin.token", "cannot be written")


@pytest.mark.chaos
def test_a_database_that_another_program_holds(data: Path, start: Start) -> None:
    with closing(sqlite3.connect(data / "fedround.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert has(start(data), data / "fedround.db", "is used by another program", "end that one")


def test_a_postgresql_that_does_not_answer(data_dir: Path, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        message = start(data_dir, "--database", f"postgresql://me:secret@{address}/mine?connect_timeout=2")
    assert has(message, f"the database {address}/mine", "timeout", "check that PostgreSQL runs there")
    assert "secret" not in message


@in_both_formats
def test_a_postgresql_that_refuses(data_dir: Path, start: Start) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        message = start(data_dir, "--database", f"postgresql://me:secret@{address}/mine")
    assert has(message, f"the database {address}/mine", "refused", "check that PostgreSQL runs there")
    assert "secret" not in message


def test_a_postgresql_without_the_database(postgres: str, data_dir: Path, start: Start) -> None:
    missing = urlsplit(postgres)._replace(path="/nowhere").geturl()
    assert has(start(data_dir, "--database", missing), "/nowhere", "does not exist", "check that PostgreSQL runs there")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_postgresql_without_free_connections(database: str, data_dir: Path, start: Start) -> None:
    with ExitStack() as stack:
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(database))
        message = start(data_dir, "--database", database)
        assert has(message, urlsplit(database).path, "has no free connection", "raise max_connections")


def test_a_postgresql_that_does_not_know_the_user(postgres: str, data_dir: Path, start: Start) -> None:
    url = f"{postgres}&user=stranger"
    assert has(start(data_dir, "--database", url), "refuses the server", "stranger", "check user and password")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_database_of_a_server_with_other_files(database: str, data_dir: Path, tmp_path: Path, start: Start) -> None:
    with Server(data_dir, database=database):
        message = start(tmp_path / "other", "--database", database)
    assert has(message, "another server uses this database, and has its files elsewhere", "the same place for files")


@pytest.mark.parametrize("end", ["?no=such", "%zz/mine"])
def test_a_postgresql_url_that_is_not_valid(data_dir: Path, start: Start, end: str) -> None:
    message = start(data_dir, "--database", f"postgresql://me:secret@127.0.0.1{end}")
    assert has(message, "database: ", "postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    assert "secret" not in message
