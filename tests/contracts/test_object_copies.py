"""Copies of blobs of an object store: what is fetched when, what is damaged, and what is removed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.blobs import put_small, small
from contracts.buckets import Requests, opener_of
from contracts.object_servers import DATA, Servers, upload
from fedround_server.blobs import BlobDamaged
from fedround_server.blobs.objects import ObjectBlobs
from fedround_server.blobs.objects.bucket import Bucket
from fedround_server.blobs.objects.layout import PARTS, list_key


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


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
    words = {"cut": "has 19 bytes instead of 37", "flip": "its SHA-256 is"}.get(change, "is missing")
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
