"""Servers that share a bucket: those that die between two requests, and those that do the same at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.blobs import put, put_small
from contracts.buckets import Requests, all_keys, unreliable
from contracts.object_servers import DATA, UPLOAD, WHOLE, Servers, leave, upload
from fedround_server.blobs.objects import ObjectBlobs, removal
from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry
from fedround_server.blobs.objects.layout import OBJECTS, PARTS, UPLOADS, removing_key
from fedround_server.domain.errors import ObjectsUnavailable, UploadOffset


class Dead(BaseException):
    """The server has been killed."""


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


def dying(at: int, *, after: bool) -> Callable[[Bucket], Requests]:
    """A bucket whose server dies at a request, before or after it takes effect."""

    def wrap(bucket: Bucket) -> Requests:
        made, count, lock = Requests(bucket), 0, threading.Lock()

        def reach(method: str, key: str, *, is_here: bool) -> None:
            nonlocal count
            with lock:
                count += is_here
                if count >= at:
                    raise Dead

        made.before = lambda method, key: reach(method, key, is_here=not after)
        made.after = lambda method, key: reach(method, key, is_here=after)
        return made

    return wrap


def test_an_upload_is_resumed_on_another_server(servers: Servers) -> None:
    leave(servers.start(), 17)
    second = servers.start()
    assert list(second.unfinished_uploads()) == [(UPLOAD, 17)]
    # Also further back than it stands, within a part.
    with second.writer(UPLOAD, 13) as writer:
        writer.replay(lambda _: None)
        writer.write(DATA[13:26])
    assert servers.start().upload_size(UPLOAD) == 26
    third = servers.start()
    blob = upload(third)
    assert (blob, blob.checksums) == (WHOLE.blob, WHOLE.blob.checksums)
    assert servers.read(blob) == DATA
    assert third.upload_size(UPLOAD) == 0


@pytest.mark.parametrize("after", [False, True])
def test_a_server_may_die_at_any_request_of_an_upload(tmp_path: Path, after: bool) -> None:
    at = 0
    while True:
        at += 1
        (folder := tmp_path / str(at)).mkdir()
        servers = Servers(folder)
        leave(servers.start(), 17)
        try:
            upload(servers.start(dying(at, after=after)))
        except Dead:
            blob = upload(servers.start())
        else:
            break
        assert blob == WHOLE.blob
        assert servers.read(blob) == DATA
        # A day later nothing is left but the blob.
        servers.age_all()
        last = servers.start()
        last.collect_uploads()
        assert servers.read(blob) == DATA
        last.collect([blob.sha256])
        servers.age_all()
        servers.start().collect_uploads()
        assert all_keys(servers.bucket) == []
    assert at > 8


@pytest.mark.parametrize("after", [False, True])
def test_a_server_may_die_at_any_request_of_a_collection(tmp_path: Path, after: bool) -> None:
    at = 0
    while True:
        at += 1
        (folder := tmp_path / str(at)).mkdir()
        servers = Servers(folder)
        first = servers.start()
        kept, old = upload(first), put(first, DATA[::-1])
        leave(first, 12)
        first.keep(kept)
        first.keep(old)
        servers.age_all()

        def collect(blobs: ObjectBlobs, digests: list[str]) -> None:
            blobs.collect(digests)
            blobs.collect_uploads()

        try:
            collect(servers.start(dying(at, after=after)), [old.sha256])
        except Dead:
            pass
        else:
            break
        servers.age_all()
        collect(servers.start(), [])
        collect(servers.start(), [old.sha256])
        servers.age_all()
        collect(servers.start(), [])
        assert servers.read(kept) == DATA
        assert not [key for key in all_keys(servers.bucket) if old.sha256 in key or key.startswith(UPLOADS)]
        servers.start().collect([kept.sha256])
        servers.age_all()
        collect(servers.start(), [])
        assert all_keys(servers.bucket) == []
    assert at > 8


class Meeting:
    """Lets another server do something at a request of the first one: to its end, or until it waits for the first."""

    def __init__(self, at: int, other: ObjectBlobs, work: Callable[[], object]) -> None:
        self.is_on = False
        self._at = at
        self._count = 0
        self._work = work
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        # When it has seen that a removal is under way.
        other._removals._sleep = self._wait

    def wrap(self, bucket: Bucket) -> Requests:
        made = Requests(bucket)
        made.before = self._reach
        return made

    def join(self) -> bool:
        """Waits for the other server; returns whether it was let in."""
        if self._thread is not None:
            self._thread.join()
        return self._thread is not None

    def _reach(self, method: str, key: str) -> None:
        self._count += self.is_on
        if self.is_on and self._count == self._at:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()
            self._stopped.wait()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._stopped.set()

    def _wait(self, seconds: float) -> None:
        self._stopped.set()
        time.sleep(0.001)


@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "large"])
@pytest.mark.parametrize("way", ["collect", "release"])
def test_a_blob_that_is_stored_again_while_it_is_removed_stays(tmp_path: Path, data: bytes, way: str) -> None:
    at = 0
    while True:
        at += 1
        (folder := tmp_path / str(at)).mkdir()
        servers = Servers(folder)
        other = servers.start()
        meeting = Meeting(at, other, lambda other=other: put_small(other, data))
        first = servers.start(meeting.wrap)
        blob = put_small(first, data)
        meeting.is_on = True
        if way == "collect":
            first.keep(blob)
            servers.age_all()
            first.collect([blob.sha256])
        else:
            first.release(blob)
        if not meeting.join():
            break
        other.keep(blob)
        assert servers.read(blob) == data
        assert servers.bucket.head(removing_key(blob.sha256)) is None
    assert at > 4


def test_servers_that_store_the_same_bytes_at_once_keep_them_for_each_other(servers: Servers) -> None:
    several = [servers.start(lambda bucket, seed=seed: unreliable(bucket, seed)) for seed in range(4)]
    for number in range(20):
        data = bytes([number]) * (5 + number)
        with ThreadPoolExecutor(4) as pool:
            blobs = list(pool.map(lambda one, data=data: put_small(one, data), several))
        for one in several[:-1]:
            one.release(blobs[0])
        several[-1].keep(blobs[0])
        assert servers.read(blobs[0]) == data


def test_a_removal_that_was_interrupted_is_waited_for_and_then_ignored(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "POLL_SECONDS", 1.0)
    first, second = servers.start(), servers.start()
    blob = put_small(first, b"small")
    servers.bucket.put(removing_key(blob.sha256), b"removing", create=True, commit="of a server that is gone")
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    second._removals._sleep, second._removals._clock = sleep, lambda: now
    put_small(second, b"small")
    assert 60 <= now < 70
    assert servers.bucket.head(removing_key(blob.sha256)) is None
    assert servers.read(blob) == b"small"


def test_a_removal_that_is_not_answered_leaves_its_mark(servers: Servers) -> None:
    first = servers.start()
    blob = put_small(first, b"small")
    first.keep(blob)
    servers.age_all()

    def through(bucket: Bucket) -> Requests:
        made = Requests(bucket)

        def fail(method: str, key: str) -> None:
            if method == "delete" and key.startswith(OBJECTS):
                raise BucketError("it does not answer in time")

        made.after = fail
        return made

    with pytest.raises(ObjectsUnavailable):
        servers.start(through).collect([blob.sha256])
    assert servers.bucket.head(removing_key(blob.sha256)) is not None
    # It may still happen, so that no other server removes the blob; a day later the mark is removed.
    servers.age_all()
    servers.start().collect_uploads()
    assert servers.bucket.head(removing_key(blob.sha256)) is None


def test_a_listing_that_is_behind_costs_nothing_that_is_needed(servers: Servers) -> None:
    first = servers.start()
    blob = upload(first)
    first.keep(blob)
    leave(first, 17)
    servers.age_all()
    hidden = (OBJECTS, UPLOADS)

    class Behind(Requests):
        def page(self, prefix: str, after: str) -> list[Entry]:
            return [entry for entry in super().page(prefix, after) if not entry.key.startswith(hidden)]

    behind = servers.start(Behind)
    assert (behind.old(), list(behind.unfinished_uploads())) == ([], [])
    assert behind.collect_uploads() == {}
    assert servers.read(blob) == DATA
    assert servers.start().upload_size(UPLOAD) == 17


def test_what_a_listing_shows_too_long_is_looked_at_before_it_is_removed(servers: Servers) -> None:
    first = servers.start()
    blob = put_small(first, b"small")
    first.keep(blob)
    leave(first, 17)
    servers.age_all()
    stale = {prefix: servers.bucket.page(prefix, "") for prefix in (OBJECTS, PARTS, UPLOADS, "removing/", "clock/")}

    class Behind(Requests):
        def page(self, prefix: str, after: str) -> list[Entry]:
            return [entry for entry in stale.get(prefix, []) if entry.key > after]

    # Meanwhile both were continued.
    put_small(first, b"small")
    first.keep(blob)
    with first.writer(UPLOAD, 17) as writer:
        writer.replay(lambda _: None)
        writer.write(DATA[17:20])
    behind = servers.start(Behind)
    assert behind.old() == [blob.sha256]
    assert behind.collect([blob.sha256]) == []
    assert behind.collect_uploads() == {}
    assert servers.read(blob) == b"small"
    assert upload(servers.start()) == WHOLE.blob


@pytest.mark.parametrize("change", ["remove", "cut"])
def test_an_upload_whose_part_is_lost_begins_anew(servers: Servers, change: str) -> None:
    leave(servers.start(), 25)
    key = next(entry.key for entry in servers.bucket.page(PARTS, "") if entry.key.endswith("/1"))
    if change == "remove":
        servers.bucket.delete(key)
    else:
        servers.bucket.put(key, servers.bucket.get(key)[:-1])
    second = servers.start()
    with pytest.raises(UploadOffset) as raised, second.writer(UPLOAD, 25) as writer:
        writer.replay(lambda _: None)
    assert raised.value.metadata["committed_size"] == "0"
    assert second.upload_size(UPLOAD) == 0
    assert upload(second) == WHOLE.blob


def test_objects_of_others_are_left_alone(servers: Servers) -> None:
    blob = put_small(first := servers.start(), b"small")
    first.keep(blob)
    foreign = [f"{prefix}{name}" for prefix in (OBJECTS, PARTS, UPLOADS) for name in ("a", "a/b/c", "a/b/c/d/e")]
    for key in foreign:
        servers.bucket.put(key, b"of others")
    servers.age_all()
    second = servers.start()
    assert second.old() == [blob.sha256]
    assert [one.sha256 for one in second.stored()] == [blob.sha256]
    assert second.collect(second.old()) == [5]
    assert second.collect_uploads() == {}
    second.measure()
    assert list(second.unfinished_uploads()) == []
    assert set(all_keys(servers.bucket)) == set(foreign)
