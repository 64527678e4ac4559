"""The power goes off: what was not forced to disk is lost, and no row may refer to it.

SQLite and PostgreSQL force their own files. For the others each sync is recorded; a file is safe if its content, its
name in its folder, and the folders that lead to it are. A small one is safe, too, if the journal has it, in a segment
whose content and name are on disk.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from chaos.faults import Storage, failing
from chaos.history import History
from chaos.scenario import run
from fedround_server.blobs import journal, local, read_entries
from fedround_server.blobs.segment import Segment
from fedround_server.blobs.writer import LocalWriter
from fedround_server.engine.format.writer import TensorWriter
from fedround_server.host import sync

T = TypeVar("T")
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
        # The digests of each segment's entries.
        self._entries: dict[int, set[str]] = {}
        self.journaled = 0

    def synced(self, descriptor: int) -> None:
        """Records that a file or a folder is on disk in its present state."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self._names[path] = {one.name: one.stat().st_ino for one in path.iterdir()}
        else:
            self._contents[os.fstat(descriptor).st_ino] = hashlib.sha256(path.read_bytes()).hexdigest()

    def data_synced(self, descriptor: int) -> None:
        """Records that the entries of a segment are on disk."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._entries[os.fstat(descriptor).st_ino] = {file.blob.sha256 for file in read_entries(path)}

    def overwritten(self, descriptor: int, position: int) -> None:
        """Records that a segment is used again: until the next sync any of its entries may be torn."""
        if position == 0:
            self._entries[os.fstat(descriptor).st_ino] = set()

    def all_synced(self) -> None:
        """Records that all files and folders are on disk in their present state."""
        for folder in (self.folder, *filter(Path.is_dir, self.folder.rglob("*"))):
            self._names[folder] = {one.name: one.stat().st_ino for one in folder.iterdir()}
        for path in (self.folder / "objects").glob("*/*"):
            self._contents[path.stat().st_ino] = hashlib.sha256(path.read_bytes()).hexdigest()

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
        if number is not None and self._contents.get(number) == digest:
            return True
        segments = self._names.get(self.folder / "journal", {}).values()
        is_journaled = any(digest in self._entries.get(segment, ()) for segment in segments)
        self.journaled += is_journaled
        return is_journaled


@contextmanager
def recorded(disk: Disk) -> Iterator[None]:
    def noted(function: Callable[..., T], note: Callable[[int], None]) -> Callable[[int], T]:
        def call(descriptor: int) -> T:
            done = function(descriptor)
            if disk.concerns(descriptor):
                note(descriptor)
            return done

        return call

    def write(descriptor: int, pieces: Sequence[memoryview], position: int) -> int:
        if disk.concerns(descriptor):
            disk.overwritten(descriptor, position)
        return append(descriptor, pieces, position)

    with failing(disk), pytest.MonkeyPatch.context() as patch:
        append = os.pwritev
        patch.setattr(os, "pwritev", write)
        patch.setattr(os, "fsync", noted(os.fsync, disk.synced))
        patch.setattr(os, "fdatasync", noted(os.fdatasync, disk.data_synced))
        for module in (journal, local):
            patch.setattr(module, "sync_file_system", noted(sync.sync_file_system, lambda _: disk.all_synced()))
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
    assert disk.journaled > 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (local, "sync_folder"),
        (LocalWriter, "sync"),
        (TensorWriter, "finish"),
        (journal, "sync_folder"),
        (Segment, "sync"),
    ],
    ids=["folder", "upload", "model", "journal's folder", "journal"],
)
def test_a_sync_that_is_left_out_is_noticed(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(owner, name)

    def careless(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for call in ("fsync", "fdatasync"):
                patch.setattr(os, call, lambda descriptor: None)
            return done(*args)

    monkeypatch.setattr(owner, name, careless)
    assert play(tmp_path, "").unsafe != set()
