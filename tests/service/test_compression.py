"""Compression of chunks, by raw calls: the file is the same, and decompression is bounded."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
import pytest
from safetensors.numpy import save

import fedround_client as fr
from calls import Person, fails_with, new_id, new_number
from fedround.v1 import event_pb2, model_pb2
from fedround_server.services.compression import Compressor
from servers import Server
from service.uploads import Upload, committed, is_stored, storing

GZIP = event_pb2.COMPRESSION_GZIP
MIB = 1 << 20


def compressed(upload: Upload, data: bytes, size: int = MIB) -> Iterator[Any]:
    for start in range(0, len(data), size):
        chunk = data[start : start + size]
        yield upload.request(chunk=gzip.compress(chunk), chunk_crc32c=google_crc32c.value(chunk), compression=GZIP)


def zeros(count: int) -> bytes:
    return save({"w": np.zeros(count, np.float32), "own": np.array(new_number())})


def test_compressed_and_plain_chunks_make_the_same_file(server: Server, upload: Upload, data: bytes) -> None:
    head, *chunks = upload.spec(data), *compressed(upload, data, 50)
    head.chunk, head.compression, head.chunk_crc32c = chunks[0].chunk, GZIP, chunks[0].chunk_crc32c
    plain = list(upload.chunks(data, 50))
    upload.send(head, plain[1], *chunks[2:])
    assert is_stored(server, data)


def test_a_resumed_upload_counts_the_bytes_of_the_file(server: Server, actor: Person, data: bytes) -> None:
    upload, upload_id = storing(actor), new_id()
    with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE", f"ended after 100 of {len(data)}"):
        upload.send(upload.resumable(data, upload_id), *compressed(upload, data[:100], 50))
    assert committed(upload, upload_id) == 100
    upload.send(upload.resumable(data, upload_id, 100), *compressed(upload, data[100:]))
    assert is_stored(server, data)


@cache
def bomb() -> bytes:
    """512 MiB in half a MiB; made once, as it takes seconds."""
    return gzip.compress(bytes(512 * MIB), 9)


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "a byte too many": (
        lambda: gzip.compress(bytes(MIB + 1)),
        "FIELD_INVALID",
        f"chunk: decompresses to more than {MIB} bytes",
    ),
    "a bomb": (
        bomb,
        "FIELD_INVALID",
        f"chunk: decompresses to more than {MIB} bytes",
    ),
    "two chunks": (
        lambda: gzip.compress(b"one") + gzip.compress(b"two"),
        "FIELD_INVALID",
        "or more follows: compress each chunk by itself",
    ),
    "cut off": (lambda: gzip.compress(b"cut off")[:-1], "CHUNK_CORRUPT", "send them again"),
    "damaged": (lambda: gzip.compress(b"damaged")[:-1] + b"!", "CHUNK_CORRUPT", "send them again"),
    "another format": (lambda: zlib.compress(b"another format"), "CHUNK_CORRUPT", "send them again"),
    "not packed": (lambda: b"not packed", "CHUNK_CORRUPT", "send them again"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decompressed_is_an_error(upload: Upload, data: bytes, name: str) -> None:
    make, reason, words = REFUSED[name]
    chunk = make()
    code = "INVALID_ARGUMENT" if reason == "FIELD_INVALID" else "DATA_LOSS"
    before = upload.look()
    with fails_with(code, reason, words):
        upload.send(upload.spec(data), upload.request(chunk=chunk, compression=GZIP))
    assert upload.look() == before


def test_the_checksum_is_that_of_the_file(upload: Upload, data: bytes) -> None:
    chunk = gzip.compress(data)
    with fails_with("DATA_LOSS", "CHUNK_CORRUPT", "send them again"):
        upload.send(
            upload.spec(data), upload.request(chunk=chunk, compression=GZIP, chunk_crc32c=google_crc32c.value(chunk))
        )


def test_unknown_compressions_are_rejected(upload: Upload, actor: Person, data: bytes) -> None:
    with fails_with(
        "INVALID_ARGUMENT", "FIELD_INVALID", "compression: is 7; known are COMPRESSION_UNSPECIFIED, COMPRESSION_GZIP"
    ):
        upload.send(upload.spec(data), upload.request(chunk=data, compression=7))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "compression: is 7"):
        list(actor.models.DownloadModel(model_pb2.DownloadModelRequest(model_id=new_id(), compression=7)))


def test_a_chunk_of_1_mib_may_be_packed(server: Server, actor: Person) -> None:
    data, upload = zeros(600_000), storing(actor)
    upload.send(upload.spec(data), *compressed(upload, data))
    assert is_stored(server, data)


def test_downloads_are_packed_for_those_who_ask(actor: Person) -> None:
    random = np.random.default_rng(1).integers(0, 256, 1_000_000, np.uint8)
    for data, smaller in ((zeros(500_000), True), (save({"w": random}), False)):
        upload = storing(actor)
        model_id = upload.send(upload.spec(data), *upload.chunks(data)).model.model_id
        for compression in (GZIP, event_pb2.COMPRESSION_UNSPECIFIED):
            request = model_pb2.DownloadModelRequest(model_id=model_id, offset=10, compression=compression)
            _, *messages = actor.models.DownloadModel(request)
            chunks = [gzip.decompress(one.chunk) if one.compression == GZIP else one.chunk for one in messages]
            assert b"".join(chunks) == data[10:]
            assert [one.chunk_crc32c for one in messages] == [google_crc32c.value(chunk) for chunk in chunks]
            assert any(one.compression == GZIP for one in messages) == (smaller and compression == GZIP)
            if smaller and compression == GZIP:
                assert sum(len(one.chunk) for one in messages) < len(data) / 50


async def test_chunks_are_packed_one_at_a_time() -> None:
    compressor = Compressor()
    first = compressor.compress(bytes(1000))
    # It has begun once it waits for its thread.
    waiting = first.__await__()
    next(waiting)
    assert await compressor.compress(bytes(1000)) is None
    waiting.close()
    found = await compressor.compress(bytes(1000))
    assert found is not None
    assert gzip.decompress(found) == bytes(1000)


def test_the_sdk_compresses_and_decompresses(server: Server, actor: Person) -> None:
    weights = {"w": np.where(np.arange(700_000) % 10, 0, np.arange(700_000)).astype(np.float32)}
    with fr.connect(server.address, actor.token, compression="gzip") as client:
        model_id = client.upload_model(weights).model_id
        np.testing.assert_array_equal(client.download_model(model_id)["w"], weights["w"])
    with fr.connect(server.address, actor.token) as client:
        np.testing.assert_array_equal(client.download_model(model_id)["w"], weights["w"])
    with pytest.raises(ValueError, match="COMPRESSION_ROT13"):
        fr.connect(server.address, actor.token, compression="rot13")  # type: ignore[arg-type]
