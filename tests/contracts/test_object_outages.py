"""An object store that is away: what waits, what fails, what is logged, and what goes on afterwards."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from calls import until
from contracts.blobs import put_small, small
from contracts.buckets import Requests, new_memory, unreliable
from contracts.object_servers import DATA, UPLOAD, WHOLE, Servers, upload
from fedround_server.blobs.objects.bucket import Bucket, BucketError
from fedround_server.blobs.objects.layout import upload_key
from fedround_server.blobs.objects.patient import PatientBucket
from fedround_server.domain.errors import ObjectsUnavailable


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


@dataclass
class Outage:
    """A bucket that can be away, and a time that passes by itself."""

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
                raise BucketError("it answers 503 SlowDown", detail="s3.test:1")

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
    # For the operator alone.
    assert "s3.test" not in str(raised.value)
    assert "it answers 503 SlowDown (s3.test:1); uploads" in caplog.text
    assert 60 <= outage.now < 75
    before, attempts = outage.now, outage.attempts
    for _ in range(5):
        with pytest.raises(ObjectsUnavailable):
            patient.head("a")
    assert (outage.now, outage.attempts) == (before, attempts + 5)
    outage.is_away = False
    assert patient.head("a") is None
    assert len(caplog.records) == 2


def test_a_store_that_hangs_is_logged_before_its_requests_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fedround_server.blobs.objects.patient.SILENT_SECONDS", 0.1)
    monkeypatch.setattr("fedround_server.blobs.objects.watch.POLL_SECONDS", 0.01)
    requests, goes_on = Requests(new_memory()), threading.Event()

    def hang(method: str, key: str) -> None:
        goes_on.wait()

    requests.before = hang
    bucket = PatientBucket(requests)
    for _ in range(2):
        goes_on.clear()
        with ThreadPoolExecutor(2) as pool:
            puts = [pool.submit(bucket.put, key, b"1") for key in "ab"]
            try:
                until(lambda: bool(caplog.records))
            finally:
                goes_on.set()
            for put in puts:
                put.result()
        first, second = [record.message for record in caplog.records]
        assert first == "the object store cannot be used: it does not answer; uploads and aggregations wait for it"
        assert second.startswith("the object store answers again, after ")
        caplog.clear()


def test_single_errors_are_not_logged(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    bucket = PatientBucket(unreliable(outage.bucket, 3, 0.05), sleep=outage.sleep, clock=lambda: outage.now)
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
