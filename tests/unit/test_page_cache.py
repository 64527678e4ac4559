"""What the system keeps of files goes when it is not needed any more, and the files stay what they are."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calls import until
from fedround_server.host.page_cache import drop_cached_pages, keep_open
from in_memory import is_in_memory

DATA = os.urandom(1 << 20)
pytestmark = pytest.mark.serial


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One that is on disk."""
    path = tmp_path / "file"
    with path.open("wb") as written:
        written.write(DATA)
        written.flush()
        os.fsync(written.fileno())
    return path


def test_what_is_let_go_is_still_on_disk(file: Path) -> None:
    drop_cached_pages(file)
    assert file.read_bytes() == DATA


def test_what_is_not_there_need_not_be_let_go(tmp_path: Path) -> None:
    drop_cached_pages(tmp_path / "file")


def test_what_is_let_go_is_no_longer_in_memory(file: Path) -> None:
    if not is_in_memory(file):
        pytest.skip("this file system does not tell what is in memory")
    drop_cached_pages(file)
    assert not is_in_memory(file)


def test_a_replaced_file_is_freed_behind_the_block(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(DATA)
    new.write_bytes(b"new")
    with ThreadPoolExecutor(1) as closer, keep_open(old, closer):
        new.replace(old)
        assert _is_open(str(old) + " (deleted)")
    assert old.read_bytes() == b"new"
    until(lambda: not _is_open(str(old) + " (deleted)"))


def test_there_need_be_nothing_to_replace(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as closer, keep_open(tmp_path / "file", closer):
        (tmp_path / "file").write_bytes(DATA)
    assert (tmp_path / "file").read_bytes() == DATA


def _is_open(path: str) -> bool:
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if str(descriptor.readlink()) == path:
                return True
        except FileNotFoundError:
            continue
    return False
