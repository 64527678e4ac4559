"""What the system keeps of files goes when it is not needed any more, and the files stay what they are."""

import mmap
import os
import time
from pathlib import Path

import pytest

from fedround_server.page_cache import held, let_go

DATA = os.urandom(1 << 20)


def test_what_is_let_go_is_still_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(DATA)
        file.flush()
        os.fsync(file.fileno())
    let_go(path)
    assert path.read_bytes() == DATA


def test_what_is_not_there_need_not_be_let_go(tmp_path: Path) -> None:
    let_go(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "preadv") or not hasattr(os, "RWF_NOWAIT"), reason="the system cannot be asked")
def test_what_is_let_go_is_no_longer_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(DATA)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(path, os.O_RDONLY)
    try:
        buffer = bytearray(mmap.PAGESIZE)
        if not _is_in_memory(descriptor, buffer):
            pytest.skip("this file system does not tell what is in memory")
        let_go(path)
        if _is_in_memory(descriptor, buffer):
            pytest.skip("this file system is memory")
    finally:
        os.close(descriptor)


def test_a_replaced_file_is_freed_behind_the_block(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(DATA)
    new.write_bytes(b"new")
    with held(old):
        new.replace(old)
        assert _is_open(str(old) + " (deleted)")
    assert old.read_bytes() == b"new"
    end = time.monotonic() + 10
    while _is_open(str(old) + " (deleted)"):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_there_need_be_nothing_to_replace(tmp_path: Path) -> None:
    with held(tmp_path / "file"):
        (tmp_path / "file").write_bytes(DATA)
    assert (tmp_path / "file").read_bytes() == DATA


def _is_in_memory(descriptor: int, buffer: bytearray) -> bool:
    try:
        return os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT) == len(buffer)
    except OSError:
        return False


def _is_open(path: str) -> bool:
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if str(descriptor.readlink()) == path:
                return True
        except FileNotFoundError:
            continue
    return False
