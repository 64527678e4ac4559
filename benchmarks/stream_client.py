"""A client process of streams.py: sends or fetches one file over and over, as told line by line on its standard input.

Its lines: `up`, `down` or `drop` (a null handler), `fill` (from a null handler). It answers each with the seconds that
it took, and the seconds of CPU that this process used for it.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from fedround.v1 import model_pb2
from fedround.v1.model_pb2 import DownloadModelRequest, ModelSpec, UploadModelRequest
from fedround.v1.model_pb2_grpc import ModelServiceStub
from fedround_client.channel import open_channel
from fedround_client.chunk_stubs import with_chunk_codec
from fedround_client.participant import KEPT, LARGEST
from fedround_client.transfer import CHUNK
from fedround_wire.allocator import keep_freed
from fedround_wire.chunk_codec import ChunkMessage


class StreamClient:
    """Sends a file and fetches it."""

    def __init__(self, address: str, token: str, path: Path) -> None:
        channel = open_channel(address)
        self._models = with_chunk_codec(ModelServiceStub(channel), channel, model_pb2.DESCRIPTOR)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._data = path.read_bytes()
        self._sha256 = hashlib.sha256(self._data).hexdigest()
        self._model_id = ""

    def up(self) -> None:
        """Sends the file, each chunk with its CRC-32C; its SHA-256 is known."""
        spec = ModelSpec(name="benchmark", sha256=self._sha256, size_bytes=len(self._data))

        def messages() -> Iterator[UploadModelRequest | ChunkMessage]:
            yield UploadModelRequest(spec=spec)
            for chunk in self._chunks():
                yield ChunkMessage(chunk, google_crc32c.value(chunk))

        self._model_id = self._models.UploadModel(messages(), metadata=self._metadata).model.model_id

    def down(self) -> None:
        """Fetches the file, and checks each chunk's CRC-32C."""
        size = 0
        for message in self._models.DownloadModel(
            DownloadModelRequest(model_id=self._model_id), metadata=self._metadata
        ):
            chunk = message.chunk
            if chunk and google_crc32c.value(chunk) != message.chunk_crc32c:
                raise SystemExit("a chunk is damaged")
            size += len(chunk)
        if size != len(self._data):
            raise SystemExit(f"{size} bytes came of {len(self._data)}")

    def drop(self) -> None:
        """Sends the file's bytes, and nothing about them."""
        self._models.UploadModel(ChunkMessage(chunk, 0) for chunk in self._chunks())

    def fill(self) -> None:
        """Fetches as many bytes."""
        for message in self._models.DownloadModel(DownloadModelRequest(offset=len(self._data))):
            len(message.chunk)

    def _chunks(self) -> Iterator[bytes]:
        return (self._data[start : start + CHUNK] for start in range(0, len(self._data), CHUNK))


def main() -> None:
    """Serves its standard input."""
    address, token, path = sys.argv[1:]
    keep_freed(LARGEST, KEPT)
    client = StreamClient(address, token, Path(path))
    print("ready", flush=True)
    for line in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        getattr(client, line.strip())()
        print(time.perf_counter() - begin, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
