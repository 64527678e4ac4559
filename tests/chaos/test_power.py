"""The power goes off: what was not forced to disk is lost, and no row may refer to it.

SQLite and PostgreSQL force their own files. For the others each sync is recorded; a file is safe if its content, its
name in its folder, and the folders that lead to it are.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import Storage, failing
from chaos.history import History
from chaos.scenario import run
from fedround_server.blobs import local
from fedround_server.blobs.writer import LocalWriter
from fedround_server.engine.format.writer import TensorWriter

REFERRED = """SELECT sha256 FROM model_version UNION SELECT sha256 FROM artifact
    UNION SELECT sha256 FROM round_update UNION SELECT sha256 FROM assignment"""


@dataclass
class Disk(Storage):
    """What is safe, and which files rows referred to before they were."""

    unsafe: set[str] = field(default_factory=set)
    safe: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._contents: dict[int, str] = {}
        self._names: dict[Path, dict[str, int]] = {}

    def synced(self, descriptor: int) -> None:
        """Records that a file or a folder is on disk in its present state."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self._names[path] = {one.name: one.stat().st_ino for one in path.iterdir()}
        else:
            self._contents[os.fstat(descriptor).st_ino] = hashlib.sha256(path.read_bytes()).hexdigest()

    def committed(self, cursor: Any) -> None:
        """Looks at every file that is referred to from now on."""
        if "INSERT" not in self.calls:
            return  # the tables are being made
        for (digest,) in cursor.connection.execute(REFERRED).fetchall():
            if digest is not None:
                self.safe += self._is_safe(digest)
                self.unsafe |= set() if self._is_safe(digest) else {digest}

    def _is_safe(self, digest: str) -> bool:
        folder, number = self.folder, None
        for name in ("objects", digest[:2], digest):
            number = self._names.get(folder, {}).get(name)
            folder /= name
        return number is not None and self._contents.get(number) == digest


@contextmanager
def recorded(disk: Disk) -> Iterator[None]:
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        if disk.concerns(descriptor):
            disk.synced(descriptor)

    with failing(disk), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", note)
        yield


def play(folder: Path, database: str) -> Disk:
    """Runs the scenario; returns what the disk saw."""
    disk, history = Disk(folder / "data"), History(folder / "history.jsonl")
    with recorded(disk):
        run(disk, database, history)
    history.close()
    return disk


def test_no_row_refers_to_what_a_loss_of_power_would_take(copied: Callable[[], str], tmp_path: Path) -> None:
    disk = play(tmp_path, copied())
    assert disk.unsafe == set()
    assert disk.safe > 100


@pytest.mark.parametrize(
    ("owner", "name"),
    [(local, "sync_folder"), (LocalWriter, "sync"), (TensorWriter, "finish")],
    ids=["folder", "upload", "model"],
)
def test_a_sync_that_is_left_out_is_noticed(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(owner, name)

    def careless(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            return done(*args)

    monkeypatch.setattr(owner, name, careless)
    assert play(tmp_path, "").unsafe != set()
