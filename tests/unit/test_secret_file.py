"""The id of a place, which several servers may make at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedround_server.host import secret_file
from fedround_server.host.secret_file import read_id

SERVERS = 8


@pytest.mark.parametrize("is_empty", [False, True])
def test_servers_that_begin_at_once_read_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    path = tmp_path / "files.id"
    if is_empty:
        # As one that was killed before it wrote has left it.
        path.touch()
    barrier = threading.Barrier(SERVERS)
    read = secret_file._read
    looked = threading.local()

    def read_together(path: Path) -> str:
        found = read(path)
        if not hasattr(looked, "once"):
            looked.once = True
            barrier.wait(5)
        return found

    monkeypatch.setattr(secret_file, "_read", read_together)
    with ThreadPoolExecutor(SERVERS) as threads:
        found = {future.result() for future in [threads.submit(read_id, path) for _ in range(SERVERS)]}
    assert found == {path.read_text().strip()} != {""}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_id_stays(tmp_path: Path) -> None:
    first = read_id(tmp_path / "journal.id")
    assert read_id(tmp_path / "journal.id") == first != read_id(tmp_path / "other.id")
