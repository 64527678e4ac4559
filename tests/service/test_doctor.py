"""`fedround doctor --data-dir`: what it says of a server's machine if all is well, and of each thing that is broken."""

import json
import os
import resource
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from calls import Person, model_file
from fedround.v1.server_pb2 import ServerStatus
from fedround_client.command.doctor_server import check_status
from fedround_server.config import Settings
from fedround_server.doctor import machine
from fedround_server.doctor.__main__ import check, main
from fedround_server.domain.token import hash_token
from fedround_server.store import Store
from forked import run
from servers import Server

Found = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a server has left."""
    with Server(tmp_path_factory.mktemp("doctor") / "data") as server, grpc.insecure_channel(server.address) as channel:
        Person(channel, server.admin_token).create(model_file(1))
        beside = found(server.data_dir, listen=server.address)
        assert beside["server process"] == ("ok", "a server runs on it")
        assert beside["port"] == ("ok", f"{server.address} is listening")
        assert {state for state, _ in beside.values()} == {"ok"}
        words = ("doctor", "--data-dir", server.data_dir, "--format", "json")
        environment = {**os.environ, "FEDROUND_LISTEN": server.address, "FEDROUND_SERVER": server.address}
        ended = run(*words, environment={**environment, "FEDROUND_TOKEN": server.admin_token})
        assert ended.returncode == 0, ended.stdout + ended.stderr
        shown = {one["check"]: one["state"] for one in json.loads(ended.stdout)}
        assert {"python", "database", "token", "database speed", "worker crashes"} <= shown.keys()
        # Without a token, the connection is not checked.
        ended = run(*words, environment={"FEDROUND_LISTEN": server.address, "PATH": os.environ["PATH"]})
        assert "token" not in {one["check"] for one in json.loads(ended.stdout)}
        return server.data_dir


@pytest.fixture
def data(left: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    shutil.copytree(left, tmp_path / "data")
    (tmp_path / "data").chmod(0o700)
    return tmp_path / "data"


@pytest.fixture
def tables(data: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(data / "fedround.db")
    yield connection
    connection.close()


def found(data_dir: Path, **settings: Any) -> Found:
    """The findings by check."""
    chosen = Settings(data_dir=data_dir, **{"listen": "127.0.0.1:0", **settings})
    return {one.check: (one.state, one.found) for one in check(chosen)}


def test_a_good_directory_without_a_server(data: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file() and path.suffix != ".db-shm"}
    shown = found(data)
    assert {state for state, _ in shown.values()} == {"ok"}, shown
    assert shown["server process"][1] == "no server runs on it"
    assert shown["files"] == ("ok", "1 checked by size")
    # It changes nothing.
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_a_directory_that_does_not_exist_yet(tmp_path: Path) -> None:
    shown = found(tmp_path / "new")
    assert (shown["data directory"][0], shown["database"][0]) == ("note", "note")
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert found(tmp_path / "file")["data directory"][0] == "fail"


def test_a_directory_that_others_can_read(data: Path) -> None:
    data.chmod(0o755)
    state, text = found(data)["data directory"]
    assert state == "fail"
    assert f"chmod 700 {data}" in text


@pytest.mark.parametrize(("least", "state"), [(1, "ok"), (0.7, "note"), (1.5, "fail"), (3, "fail")])
def test_free_space(data: Path, least: float, state: str) -> None:
    free = shutil.disk_usage(data).free
    settings = {"min_free_bytes": 1 if state == "ok" else round(least * free)}
    shown = found(data, **settings)["disk"]
    assert shown[0] == state
    assert "refused below" in shown[1]


@pytest.mark.parametrize(("share", "state"), [(1, "fail"), (0.95, "note"), (0.5, "ok")])
def test_stored_bytes(data: Path, share: float, state: str) -> None:
    stored = sum(path.stat().st_size for path in (data / "objects").glob("*/*"))
    assert found(data, max_stored_bytes=round(stored / share))["stored files"][0] == state


@pytest.mark.parametrize(("oldest", "expected"), [(1, "note"), (9999, "fail")])
def test_a_newer_schema(data: Path, tables: sqlite3.Connection, oldest: int, expected: str) -> None:
    tables.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01')")
    tables.execute("UPDATE server_state SET oldest_schema = ?", (oldest,))
    tables.commit()
    state, text = found(data)["schema"]
    assert state == expected
    assert "9999_later" in text


def test_an_older_schema(data: Path, tables: sqlite3.Connection) -> None:
    tables.execute("DELETE FROM schema_migration WHERE name = (SELECT max(name) FROM schema_migration)")
    tables.commit()
    assert found(data)["schema"][0] == "note"


def test_a_damaged_database(data: Path, tables: sqlite3.Connection) -> None:
    (page,) = tables.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()
    (size,) = tables.execute("PRAGMA page_size").fetchone()
    tables.close()
    with (data / "fedround.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    state, text = found(data)["integrity"]
    assert state == "fail"
    assert "backup" in text


def test_a_file_that_is_no_database(data: Path) -> None:
    (data / "fedround.db").write_bytes(b"no database" * 1000)
    assert found(data)["database"][0] == "fail"


def test_a_database_that_does_not_answer(data: Path) -> None:
    state, text = found(data, database="postgresql://user:secret@127.0.0.1:1/name")["database"]
    assert state == "fail"
    assert "127.0.0.1:1/name" in text
    assert "secret" not in text


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_file_that_is_damaged(data: Path, damage: str) -> None:
    (blob,) = (data / "objects").glob("*/*")
    if damage == "missing":
        blob.unlink()
    else:
        blob.chmod(0o600)
        os.truncate(blob, 3)
    state, text = found(data)["files"]
    assert state == "fail"
    assert blob.name in text


def test_settings_of_the_database(database: str) -> None:
    if not database.startswith("postgresql"):
        pytest.skip("SQLite has no such settings")
    with Store(database):
        pass
    shown = found(Path("none"), database=database)
    # Those of tests are fast and unsafe.
    assert shown["database synchronous_commit"][0] == "fail"
    assert shown["database timezone"][0] == "ok"


def test_a_token_file_that_others_can_read(data: Path) -> None:
    (data / "admin.token").chmod(0o644)
    state, text = found(data)["admin.token"]
    assert state == "fail"
    assert "chmod 600" in text


def test_an_admin_whose_token_is_kept_elsewhere(data: Path) -> None:
    (data / "admin.token").unlink()
    assert found(data)["admin.token"][0] == "ok"


def test_admins_without_a_valid_token(data: Path, tables: sqlite3.Connection) -> None:
    token = (data / "admin.token").read_text().strip()
    assert tables.execute("DELETE FROM token WHERE token_hash = ?", (hash_token(token),)).rowcount == 1
    tables.commit()
    state, text = found(data)["admin.token"]
    assert state == "note"
    assert "no admin has a valid token" in text


def test_a_token_that_was_replaced(data: Path) -> None:
    (data / "admin.token").write_text("fr_another\n")
    state, text = found(data)["admin.token"]
    assert state == "note"
    assert "remove the file" in text


class Files:
    """A certificate with its key, and the CA."""

    def __init__(self, folder: Path, days: float = 90) -> None:
        self.ca = trustme.CA()
        made = self.ca.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=days))
        self.cert, self.key, self.client_ca = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
        made.private_key_pem.write_to_path(self.key)
        for blob in made.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)
        self.ca.cert_pem.write_to_path(self.client_ca)

    def found(self) -> Found:
        return found(self.cert.parent / "data", tls_cert=self.cert, tls_key=self.key, tls_client_ca=self.client_ca)


@pytest.mark.parametrize(
    ("days", "state", "words"), [(90, "ok", "expires in 89 days"), (9.5, "note", "in 9 days"), (-1, "fail", "expired")]
)
def test_certificates(tmp_path: Path, days: float, state: str, words: str) -> None:
    shown = Files(tmp_path, days).found()
    assert shown["TLS certificate"][0] == state
    assert words in shown["TLS certificate"][1]
    assert shown["TLS client CA"][0] == "ok"


def test_tls_files_that_do_not_fit(tmp_path: Path) -> None:
    files = Files(tmp_path)
    (tmp_path / "other").mkdir()
    files.key = Files(tmp_path / "other").key
    files.client_ca.write_text("no certificate")
    shown = files.found()
    assert (shown["TLS certificate"][0], shown["TLS client CA"][0]) == ("fail", "fail")
    files.cert.unlink()
    assert files.found()["TLS certificate"][0] == "fail"


def test_a_port_that_is_taken(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        shown = found(data, listen=address, metrics_listen=address)
    assert (shown["port"][0], shown["metrics port"][0]) == ("fail", "fail")
    assert address in shown["port"][1]


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert machine.check_files().state == "note"


def test_a_clock_that_is_wrong() -> None:
    now = datetime.now(UTC)
    assert machine.check_clock(now - timedelta(hours=1)).state == "ok"
    assert machine.check_clock(now + timedelta(hours=1)).state == "fail"


def test_invalid_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FEDROUND_LISTEN", "0.0.0.0:1")
    assert main(["--data-dir", str(tmp_path)]) == 1
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["check"], only["state"]) == ("settings", "fail")
    assert "loopback" in only["found"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fedround.toml").write_text("listen = ")
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert "fedround.toml" in capsys.readouterr().out


def test_what_a_running_server_says_of_itself() -> None:
    status = ServerStatus(version="1")
    status.disk.free_bytes, status.disk.min_free_bytes, status.disk.max_stored_bytes = 100, 10, 100
    assert {one.state for one in check_status(status)} == {"ok"}
    status.disk.free_bytes, status.worker.crashes = 15, 2
    status.database.commits, status.database.commit_seconds = 10, 5.0
    states = {one.check: one.state for one in check_status(status)}
    assert states.keys() - {name for name, state in states.items() if state == "note"} == {"server version"}
    status.disk.free_bytes = 1
    assert {one.check: one.state for one in check_status(status)}["server disk"] == "fail"


def test_the_bucket_is_an_option(data: Path) -> None:
    def shown(*options: str) -> dict[str, str]:
        words = ("doctor", "--data-dir", data, "--format", "json", *options)
        ended = run(*words, environment={"PATH": os.environ["PATH"]})
        return {one["check"]: one["found"] for one in json.loads(ended.stdout)}

    # The files are in the directory.
    assert f"objects copy {data} s3://bucket/there" in shown("--objects", "s3://bucket/there")["object store"]
    (data / "objects.url").write_text("s3://bucket/there\n")
    elsewhere = shown()
    assert "set --objects s3://bucket/there" in elsewhere["object store"]
    assert {"extra s3", "extra ray"} <= elsewhere.keys()
