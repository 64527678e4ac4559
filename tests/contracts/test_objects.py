"""Blobs in an object store: outages, servers that die between two requests, and servers that do the same at once."""

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contracts.blobs import put, put_small, small
from contracts.buckets import CACHE_BYTES, AgedBucket, Requests, all_keys, new_memory, opener_of, unreliable
from fedround_server.blobs import BlobDamaged, BlobDigest, UploadRef
from fedround_server.blobs.objects import ObjectBlobs, removal
from fedround_server.blobs.objects.bucket import Bucket, BucketError, Entry
from fedround_server.blobs.objects.layout import OBJECTS, PARTS, UPLOADS, list_key, removing_key, upload_key
from fedround_server.blobs.objects.patient import PatientBucket
from fedround_server.domain.errors import ObjectsUnavailable, UploadOffset
from fedround_server.domain.model import BlobRef

UPLOAD = UploadRef("user", "upload")
PART = 10
DATA = random.Random(1).randbytes(37)
WHOLE = BlobDigest()
WHOLE.update(DATA)


class Dead(BaseException):
    """The server has been killed."""


@dataclass
class Servers:
    """Servers that share a bucket, each with a data directory of its own."""

    folder: Path
    bucket: AgedBucket = field(default_factory=lambda: AgedBucket(new_memory()))
    part_bytes: int = PART

    def start(self, through: Callable[[Bucket], Bucket] = lambda bucket: bucket) -> ObjectBlobs:
        number = len(list(self.folder.iterdir()))
        opener = opener_of(through(self.bucket))
        return ObjectBlobs(self.folder / str(number), opener, CACHE_BYTES, self.part_bytes)

    def age_all(self) -> None:
        self.bucket.age(*all_keys(self.bucket))

    def read(self, blob: BlobRef) -> bytes:
        """What a server that has no copy reads."""
        return self.start().files.local_path(blob).read_bytes()


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


def upload(blobs: ObjectBlobs, data: bytes = DATA, ref: UploadRef = UPLOAD) -> BlobRef:
    """Sends what of an upload is missing, like a client."""
    offset = blobs.upload_size(ref)
    with blobs.writer(ref, offset) as writer:
        seen = bytearray()
        writer.replay(seen.extend)
        assert bytes(seen) == data[:offset]
        for start in range(offset, len(data), 4):
            writer.write(data[start : start + 4])
        writer.sync()
        blobs.commit(writer.staged)
        return writer.staged.blob


def leave(blobs: ObjectBlobs, size: int) -> None:
    """Leaves an upload unfinished."""
    with blobs.writer(UPLOAD) as writer:
        writer.write(DATA[:size])


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


@pytest.mark.parametrize("data", [b"small", DATA])
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


@pytest.mark.parametrize("change", ["remove", "cut", "flip", "list"])
def test_a_damaged_part_is_found_when_the_blob_is_fetched(servers: Servers, change: str) -> None:
    blob = upload(servers.start())
    key = next(entry.key for entry in servers.bucket.page(PARTS, "") if entry.key.endswith("/1"))
    data = servers.bucket.get(key)
    if change == "remove":
        servers.bucket.delete(key)
    elif change == "list":
        servers.bucket.put(list_key(blob.sha256), b"[[")
    else:
        servers.bucket.put(key, data[:-1] if change == "cut" else bytes([data[0] ^ 1]) + data[1:])
    words = {"cut": "has 36 bytes instead of 37", "flip": "its SHA-256 is"}.get(change, "is missing")
    for ask in (lambda blobs: blobs.files.local_path(blob), lambda blobs: blobs.open(blob, 0)):
        with pytest.raises(BlobDamaged, match=words):
            ask(servers.start())
    # The same bytes mend it.
    upload(servers.start())
    assert servers.read(blob) == DATA


def test_a_range_reads_nothing_else(servers: Servers) -> None:
    blob = upload(servers.start())
    asked: list[tuple[str, str]] = []

    def through(bucket: Bucket) -> Requests:
        made = Requests(bucket)
        made.before = lambda method, key: asked.append((method, key.rpartition("/")[2]))
        return made

    blobs = servers.start(through)
    assert blobs.files.range(blob, 12, 15) == DATA[12:15]
    assert asked == [("get", f"{blob.sha256}.parts"), ("get", "1")]
    assert blobs.files.range(blob, 8, 1000) == DATA[8:]


def test_copies_are_fetched_once_and_the_unused_are_removed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.part_bytes = 1000
    first = servers.start()
    blobs = [put_small(first, bytes([number]) * 1000) for number in range(10)]
    asked: list[str] = []

    def through(bucket: Bucket) -> Requests:
        made = Requests(bucket)
        made.before = lambda method, key: asked.append(key)
        return made

    files = ObjectBlobs(servers.folder / "few", opener_of(through(servers.bucket)), 4000, 1000).files
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: files.local_path(blobs[0]), range(8)))) == 1
    assert len(asked) == 1
    # Those that were asked for just now stay, though they are more than the limit.
    paths = [files.local_path(blob) for blob in blobs]
    assert all(path.exists() for path in paths)
    monkeypatch.setattr("fedround_server.blobs.objects.cache.GRACE_SECONDS", -1.0)
    with paths[1].open("rb") as opened:
        files.cache.evict()
        assert opened.read() == bytes([1]) * 1000
    assert [path.exists() for path in paths] == [False] * 6 + [True] * 4
    assert files.cache.size_bytes == 4000
    assert files.local_path(blobs[0]).read_bytes() == bytes(1000)


def test_a_copy_that_is_damaged_is_fetched_anew(servers: Servers) -> None:
    blobs = servers.start()
    blob = upload(blobs)
    path = blobs.files.local_path(blob)
    path.chmod(0o600)
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(BlobDamaged), blobs.open(blob, 0) as reader:
        reader.read()
    with blobs.open(blob, 0) as reader:
        assert reader.read().data == DATA
    blobs.files.cache.path(blob.sha256).chmod(0o600)
    blobs.files.cache.path(blob.sha256).write_bytes(b"cut")
    with blobs.open(blob, 0) as reader:
        assert reader.read().data == DATA
    assert blobs.examine(blob) == blob


def test_copies_of_before_the_machine_was_started_are_not_used(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blobs = servers.start()
    blob = upload(blobs)
    blobs.sweep()
    put_small(blobs, b"small")
    blobs.sweep()
    assert blobs.files.cache.find(small(b"small").blob.sha256) is not None
    monkeypatch.setattr("fedround_server.blobs.objects.cache.BOOT_ID", tmp_path / "another")
    blobs.sweep()
    assert blobs.files.cache.find(small(b"small").blob.sha256) is None
    assert blobs.files.local_path(blob).read_bytes() == DATA


@dataclass
class Outage:
    """A bucket that can be away, and a time in which nobody waits."""

    bucket: Bucket = field(default_factory=new_memory)
    is_away: bool = False
    now: float = 0.0
    attempts: int = 0
    on_sleep: Callable[[], None] = lambda: None

    def patient(self) -> PatientBucket:
        requests = Requests(self.bucket)

        def reach(method: str, key: str) -> None:
            self.attempts += 1
            if self.is_away:
                raise BucketError("it answers 503 SlowDown")

        requests.before = reach
        return PatientBucket(requests, sleep=self.sleep, clock=lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    monkeypatch.setattr("fedround_server.blobs.objects.patient.FIRST_DELAY", 0.1)
    return Outage()


def test_an_outage_of_less_than_a_minute_delays_requests(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    patient = outage.patient()
    outage.is_away = True

    def come_back() -> None:
        outage.is_away = outage.now < 40

    outage.on_sleep = come_back
    patient.put("a", b"1")
    assert patient.get("a") == b"1"
    assert 40 <= outage.now < 50
    assert outage.attempts < 25
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the object store cannot be used",
        f"the object store answers again, after {outage.now:.0f} s",
    ]


def test_requests_of_a_long_outage_fail_at_once(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    patient = outage.patient()
    outage.is_away = True
    with pytest.raises(ObjectsUnavailable, match="503 SlowDown") as raised:
        patient.put("a", b"1")
    assert raised.value.retry_seconds == 5
    assert 60 <= outage.now < 75
    before, attempts = outage.now, outage.attempts
    for _ in range(5):
        with pytest.raises(ObjectsUnavailable):
            patient.head("a")
    assert (outage.now, outage.attempts) == (before, attempts + 5)
    outage.is_away = False
    assert patient.head("a") is None
    assert len(caplog.records) == 2


def test_single_errors_are_not_logged(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    bucket = PatientBucket(unreliable(outage.bucket, 3, 0.3), sleep=outage.sleep, clock=lambda: outage.now)
    with caplog.at_level(logging.DEBUG):
        for number in range(50):
            bucket.put(f"a/{number:02}", b"1", create=True, commit=str(number))
    assert len(list(bucket.entries("a/"))) == 50
    assert caplog.records == []


def test_an_upload_goes_on_behind_an_outage(servers: Servers) -> None:
    is_away = False

    def through(bucket: Bucket) -> Requests:
        made = Requests(bucket)

        def fail(method: str, key: str) -> None:
            if is_away:
                raise BucketError("there is no connection to its endpoint")

        made.before = fail
        return made

    blobs = servers.start(through)
    blobs.files.bucket._patience = 0.0
    stored = put_small(blobs, b"stored")

    def send() -> None:
        nonlocal is_away
        with blobs.writer(UPLOAD) as writer:
            for start in range(0, len(DATA), 4):
                is_away = start >= 28
                writer.write(DATA[start : start + 4])
            writer.sync()

    with pytest.raises(ObjectsUnavailable):
        send()
    assert [type(error) for error in blobs.store([small(b"new")])] == [ObjectsUnavailable]
    with pytest.raises(ObjectsUnavailable):
        blobs.files.prepare([stored])
    # What is in the cache can be read.
    assert blobs.files.local_path(stored).read_bytes() == b"stored"
    is_away = False
    assert blobs.upload_size(UPLOAD) in (0, 10, 20)
    assert upload(servers.start()) == WHOLE.blob
    assert servers.bucket.head(upload_key(UPLOAD)) is None
    assert blobs.store([small(b"new")]) == [None]
