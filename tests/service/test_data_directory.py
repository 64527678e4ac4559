"""The data directory is for its owner and for one server alone."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import forked
from calls import Person, model_file
from fedround_server.host.folder import make_private
from servers import MODULE, Server


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_what_a_server_makes_is_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    # A program of its own inherits the umask.
    with umask(0), Server(data, program=MODULE) as server, grpc.insecure_channel(server.address) as channel:
        admin = Person(channel, server.admin_token)
        client = admin.make(server.address, "CLIENT")
        training_id = admin.create(client_ids=[client.user_id]).training_id
        admin.start(training_id)
        client.submit(training_id, model_file(1))
        client.channel.close()
        folders = [data, *(path for path in data.rglob("*") if path.is_dir())]
        assert {"objects", "uploads", "tmp"} < {path.name for path in folders}
        assert {str(path): mode(path) for path in folders if mode(path) != 0o700} == {}
        private = [data / name for name in ("admin.token", "lock", "fedround.db")]
        blobs = [path for path in (data / "objects").rglob("*") if path.is_file()]
        assert {str(path): mode(path) for path in (*private, *blobs) if mode(path) & 0o077} == {}


@pytest.mark.parametrize("value", [0, 0o022, 0o277])
def test_folders_above_are_private_whatever_the_umask_says(tmp_path: Path, value: int) -> None:
    with umask(value):
        make_private(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o770, 0o700), (0o750, 0o750)])
def test_an_existing_directory_with_too_many_rights(tmp_path: Path, before: int, after: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(before)
    with Server(data) as server:
        assert mode(data) == after
        assert ("others had access to the data directory" in server.log) == (before != after)


def test_a_deleted_lock_file_lets_no_second_server_in(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        (server.data_dir / "lock").unlink()
        (tmp_path / "link").symlink_to(server.data_dir)
        for name in (server.data_dir, tmp_path / "link"):
            ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", name)
            assert ended.returncode == 1
            assert f"another server uses the data directory {name}" in ended.stderr
