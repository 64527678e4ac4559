"""Chunks with a checksum: one that is damaged on the way is rejected by itself, and what came before it stays."""

import google_crc32c
import pytest

from calls import Person, digest, download, fails_with, new_id
from fedround.v1 import model_pb2
from servers import Server
from service.uploads import Upload, committed, is_stored, storing

SIZE = 50


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("bit", [0, 8 * SIZE - 1])
def test_a_flipped_bit_is_found_at_its_chunk(
    server: Server, upload: Upload, data: bytes, number: int, bit: int
) -> None:
    upload_id, offset = new_id(), number * SIZE
    chunks = list(upload.chunks(data, SIZE))
    for message in chunks:
        message.chunk_crc32c = google_crc32c.value(message.chunk)
    damaged = bytearray(chunks[number].chunk)
    damaged[bit // 8] ^= 1 << bit % 8
    good, chunks[number].chunk = chunks[number].chunk, bytes(damaged)
    before = upload.look()
    with fails_with("DATA_LOSS", "CHUNK_CORRUPT", f"the {SIZE} bytes at offset {offset} were damaged") as error:
        upload.send(upload.resumable(data, upload_id), *chunks)
    assert error.details.metadata == {"offset": str(offset)}
    assert upload.look() == before
    assert not is_stored(server, data)
    assert committed(upload, upload_id) == offset
    chunks[number].chunk = good
    upload.send(upload.resumable(data, upload_id, offset), *chunks[number:])
    assert is_stored(server, data)


def test_a_flipped_bit_in_the_first_message_is_found(server: Server, upload: Upload, data: bytes) -> None:
    head = upload.spec(data)
    head.chunk, head.chunk_crc32c = data, google_crc32c.value(data) ^ 1
    with fails_with("DATA_LOSS", "CHUNK_CORRUPT", f"the {len(data)} bytes at offset 0 were damaged"):
        upload.send(head)
    assert not is_stored(server, data)
    head.chunk_crc32c ^= 1
    upload.send(head)
    assert is_stored(server, data)


def test_every_chunk_of_a_download_carries_its_checksum(actor: Person, data: bytes) -> None:
    upload = storing(actor)
    made = upload.send(upload.spec(data), *upload.chunks(data)).model
    for offset in (0, 10, len(data)):
        request = model_pb2.DownloadModelRequest(model_id=made.model_id, offset=offset)
        _, *messages = actor.models.DownloadModel(request)
        assert b"".join(message.chunk for message in messages) == data[offset:]
        assert all(message.chunk_crc32c == google_crc32c.value(message.chunk) for message in messages)
    assert digest(download(actor, made.model_id)[1]) == made.sha256
