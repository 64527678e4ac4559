"""The journal: small files are durable by one sync for many, before their own files are on disk.

Files are appended to a segment, which is synced, and then made without a sync. A segment is given up, and used again,
after the whole file system was synced in the background. After a crash of the machine, the next start makes files anew
from the segments that were not given up.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fedround_server.blobs.disk_full import is_disk_full
from fedround_server.blobs.refs import SmallFile
from fedround_server.blobs.segment import Segment, group_bytes, read_entries
from fedround_server.failpoints import reached
from fedround_server.host.sync import is_sync_needed, sync_file_system, sync_folder

log = logging.getLogger(__name__)
SEGMENT_BYTES = 32 << 20
"""The first pass over new blocks takes several times as long as later ones, mostly for memory of the page cache."""
MAX_SEGMENTS = 2
MIN_FREE_BYTES = 256 << 20
"""How much of the disk must be free for the journal to grow, and for segments to be kept that are not needed."""
IDLE_SECONDS = 5.0
"""After how many seconds without a new entry a segment is given up."""


class Journal:
    """Segments in a folder. Any thread may call it."""

    def __init__(self, folder: Path, objects: Path, rewrite: Callable[[SmallFile], None]) -> None:
        """Uses a folder that exists; what is in it is of earlier processes, until `remove_left`.

        Args:
            folder: Where the segments are.
            objects: Where the files are that are made of the entries.
            rewrite: Makes the file of an entry anew, durably, if it was not removed since.
        """
        self._folder = folder
        self._objects = objects
        self._rewrite = rewrite
        self._objects_descriptor: int | None = None
        self._current: Segment | None = None
        self._retired: list[Segment] = []
        self._free: list[Segment] = []
        self._is_closed = False
        self._last_append = 0.0
        self._thread: threading.Thread | None = None
        # Protects all of these; notified when a segment may be given up.
        self._changed = threading.Condition()
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def holding(self, files: Sequence[SmallFile]) -> Iterator[bool]:
        """Makes files durable, with one sync; within the block the caller makes them without one.

        Yields:
            Whether they are durable: not if the journal has no room, so that the caller must sync each.

        Raises:
            OSError: They could not be written or synced.
        """
        if not is_sync_needed():
            yield True
            return
        segment, end = self._append(files)
        if segment is None:
            yield False
            return
        reached("journal.written")
        try:
            yield _is_synced(segment, end)
        finally:
            with self._changed:
                segment.users -= 1
                if segment.is_broken:
                    self._retire(segment)
                self._changed.notify_all()

    def settle(self) -> None:
        """Gives up the segments that get no new entries, once their files are on disk.

        Raises:
            OSError: They cannot be forced to disk; the segments stay.
        """
        with self._one_at_a_time:
            with self._changed:
                ready = [segment for segment in self._retired if not segment.users]
            if not ready or self._objects_descriptor is None:
                return
            if not sync_file_system(self._objects_descriptor):
                self._doubt_all()
            for segment in ready:
                for file in read_entries(segment.path) if segment.is_doubtful else ():
                    self._rewrite(file)
            reached("journal.settled")
            with self._changed:
                for segment in ready:
                    self._retired.remove(segment)
                    if segment.is_broken or self._is_closed or self._is_low():
                        segment.remove()
                    else:
                        segment.rewind()
                        self._free.append(segment)

    def close(self) -> None:
        """Gives up all segments, and removes them; to be called after the last `holding`.

        Those whose files cannot be forced to disk stay for the next start.
        """
        with self._changed:
            self._is_closed = True
            if self._current is not None:
                self._retire(self._current)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        try:
            self.settle()
        except OSError as error:
            log.warning("the journal stays for the next start: %s", error)
        while self._free:
            self._free.pop().remove()
        while self._retired:
            self._retired.pop().close()
        if self._objects_descriptor is not None:
            os.close(self._objects_descriptor)
            self._objects_descriptor = None

    def left(self) -> Iterator[SmallFile]:
        """Yields the entries that earlier processes left; before the first `holding` only."""
        for path in sorted(self._folder.iterdir()):
            yield from read_entries(path)

    def remove_left(self) -> None:
        """Removes the segments of earlier processes; before the first `holding` only."""
        for path in self._folder.iterdir():
            path.unlink()

    def _append(self, files: Sequence[SmallFile]) -> tuple[Segment | None, int]:
        """Appends a group to a segment, which is then in use.

        Returns:
            The segment, or None if there is no room, and where the group ends in it.
        """
        with self._changed:
            try:
                segment = self._find_room(group_bytes(files))
                if segment is None:
                    return None, 0
                end = segment.append(files)
            except OSError as error:
                self._leave_current()
                if is_disk_full(error):
                    return None, 0
                raise
            segment.users += 1
            self._last_append = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._settle_forever, name="journal", daemon=True)
                self._thread.start()
            return segment, end

    def _find_room(self, size: int) -> Segment | None:
        """Returns the segment that gets a group of a size, in bytes, if there is room for it."""
        if self._is_closed:
            return None
        if self._current is not None and self._current.end_after(size) > SEGMENT_BYTES:
            self._retire(self._current)
        if self._current is None:
            self._current = self._free.pop() if self._free else self._make()
        segment = self._current
        if segment is None or segment.end_after(size) > SEGMENT_BYTES:
            return None
        if segment.end_after(size) > segment.size and self._is_low():
            self._retire(segment)
            return None
        return segment

    def _make(self) -> Segment | None:
        """Makes another segment, if there may be one more."""
        if len(self._retired) >= MAX_SEGMENTS or self._is_low():
            return None
        if self._objects_descriptor is None:
            # Before any file is made: it reports errors that come after it was opened.
            self._objects_descriptor = os.open(self._objects, os.O_RDONLY | os.O_DIRECTORY)
        segment = Segment(self._folder / str(uuid4()))
        try:
            sync_folder(self._folder)
        except BaseException:
            segment.remove()
            raise
        return segment

    def _retire(self, segment: Segment) -> None:
        """Lets no more entries be appended to a segment."""
        if segment is self._current:
            self._current = None
            self._retired.append(segment)
            self._changed.notify_all()

    def _leave_current(self) -> None:
        """Lets no more entries be appended to the current segment, which could not be written."""
        segment = self._current
        if segment is not None:
            self._retire(segment)
            if segment.is_empty:
                # Nothing relies on it, so there is nothing to wait for.
                self._retired.remove(segment)
                segment.remove()

    def _doubt_all(self) -> None:
        """Has all files be written anew that were made so far, also those of segments in use: an error is told once."""
        with self._changed:
            for segment in (*self._retired, *([self._current] if self._current else [])):
                segment.is_doubtful = True

    def _settle_forever(self) -> None:
        """Gives up segments that are full, and the last one after a while; ends when there is none."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, IDLE_SECONDS)
                is_idle = time.monotonic() >= self._last_append + IDLE_SECONDS
                if self._current is not None and is_idle:
                    self._retire(self._current)
                if self._is_closed or not (self._current or self._retired):
                    self._thread = None
                    return
            try:
                self.settle()
            except OSError as error:
                log.warning("the journal stays for now: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, IDLE_SECONDS)

    def _is_due(self) -> bool:
        return self._is_closed or any(not segment.users for segment in self._retired)

    def _is_low(self) -> bool:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES


def _is_synced(segment: Segment, end: int) -> bool:
    """Forces a group that ends at a position to disk; returns False if the disk is full.

    Raises:
        OSError: It cannot be.
    """
    try:
        segment.sync(end)
    except OSError as error:
        if is_disk_full(error):
            return False
        raise
    reached("journal.synced")
    return True


def groups(files: Sequence[SmallFile]) -> Iterator[Sequence[SmallFile]]:
    """Yields files in groups that fit into a segment."""
    start = size = 0
    for position, file in enumerate(files):
        size += group_bytes([file])
        if size > SEGMENT_BYTES and position > start:
            yield files[start:position]
            start, size = position, group_bytes([file])
    if files:
        yield files[start:]
