"""Receives the bytes of a file, and checks what can be checked while they arrive."""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from fedround_server.blobs import BlobWriter
from fedround_server.coordinator.tasks import in_thread
from fedround_server.coordinator.uploads.space import SpaceReservation
from fedround_server.coordinator.uploads.write_buffer import WriteBuffer
from fedround_server.domain.chunk import Chunk
from fedround_server.domain.errors import DigestMismatch, FieldInvalid, ModelFormat, ModelTooLarge, UploadIncomplete
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.engine.format.finite import NumberCheck
from fedround_server.engine.format.gate import HeaderGate
from fedround_server.engine.format.manifest import Layout

SMALL = 1 << 20
"""Size of a small file in bytes, at most."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that a caller sends.

    Attributes:
        user_id: The user that sends it.
        chunks: Its bytes from offset on, in pieces.
        sha256: Declared digest, lower-case hex.
        size_bytes: Declared size of the whole file.
        upload_id: Makes the upload resumable.
        offset: Where the chunks start in the file.
        training_id: The training that an update is for.
        round: The round that it is for.
    """

    user_id: str
    chunks: AsyncIterator[Chunk]
    sha256: str | None
    size_bytes: int | None
    upload_id: str | None = None
    offset: int = 0
    training_id: str | None = None
    round: int = 0

    @property
    def is_small(self) -> bool:
        """Whether the declared size is that of a small file."""
        return self.size_bytes is not None and self.size_bytes <= SMALL


class BodyReceiver:
    """Receives one file.

    Attributes:
        numbers: Checks the numbers of what is written.
    """

    def __init__(
        self,
        incoming: Incoming,
        gate: HeaderGate,
        max_bytes: int,
        max_buffered: Callable[[], int],
        scaled: Callable[[Manifest], Collection[str]],
    ) -> None:
        """Checks the declared size.

        Args:
            incoming: The file.
            gate: Checks its header.
            max_bytes: The largest size that is accepted.
            max_buffered: As in `WriteBuffer`.
            scaled: As in `NumberCheck`.

        Raises:
            ModelTooLarge: It is over the limit.
        """
        self._incoming = incoming
        self._gate = gate
        self._max_bytes = max_bytes
        self._max_buffered = max_buffered
        self.numbers = NumberCheck(lambda: gate.layout, scaled)
        self.size_bytes = 0
        """How much of the file has arrived, with what an earlier attempt left."""
        self._check_limit(incoming.size_bytes)

    @property
    def manifest(self) -> Manifest:
        """The tensors of a file that is complete."""
        return {} if self._gate.layout is None else self._gate.layout.manifest

    async def receive(self, writer: BlobWriter, space: SpaceReservation) -> None:
        """Writes the file. `check_complete` is to be called next.

        Raises:
            FedroundError: The file is rejected, as described for `Uploads.receive`.
        """
        incoming, gate = self._incoming, self._gate
        if incoming.offset:
            await in_thread(writer.replay, self._see_again)
        async with WriteBuffer(writer, self._max_buffered, self.numbers.feed) as buffer:
            async for chunk in incoming.chunks:
                await self.check(chunk, buffer.size_bytes + len(chunk.data))
                if gate.layout is not None and incoming.size_bytes is None:
                    space.cover(gate.layout.size_bytes)
                await buffer.write(chunk)
                self.size_bytes = buffer.size_bytes

    async def check(self, chunk: Chunk, size: int) -> None:
        """Checks the next chunk, with which so many bytes have arrived.

        Raises:
            FedroundError: The file is rejected, as described for `Uploads.receive`.
        """
        gate = self._gate
        if gate.takes_long(chunk.data):
            await in_thread(gate.feed, chunk.data)
        else:
            gate.feed(chunk.data)
        self._check_size(size)

    def _see_again(self, data: bytes) -> None:
        """Checks what an earlier attempt left."""
        self._gate.feed(data)
        self.numbers.feed(data)

    def _check_size(self, size: int) -> None:
        declared, layout = self._incoming.size_bytes, self._gate.layout
        if declared is not None and size > declared:
            raise FieldInvalid("size_bytes", f"the file is larger than the {declared} bytes declared")
        if layout is not None:
            self._check_limit(layout.size_bytes)
            if size > layout.size_bytes:
                raise ModelFormat(f"the file goes on behind its last tensor, at byte {layout.size_bytes}")

    def _check_limit(self, size: int | None) -> None:
        if size is not None and size > self._max_bytes:
            raise ModelTooLarge(
                f"the file has {size} bytes, the server takes {self._max_bytes}: ask the operator for more",
                limit="max_model_bytes",
            )

    def check_complete(self, received: BlobRef) -> Layout:
        """Checks that the whole file has arrived; returns what its header says.

        Args:
            received: What has arrived.

        Raises:
            FedroundError: The file is rejected, as described for `Uploads.receive`.
        """
        declared, layout = self._incoming.size_bytes, self._gate.layout
        size = received.size_bytes
        if size == 0 and not declared:
            raise FieldInvalid("chunk", "no file was sent: send a safetensors file in chunks behind the spec")
        total = layout.size_bytes if declared is None and layout is not None else declared
        if total is None or size < total:
            raise UploadIncomplete(size, total)
        if self._incoming.sha256 is not None and received.sha256 != self._incoming.sha256:
            raise DigestMismatch(
                f"the file's SHA-256 is {received.sha256}, declared was {self._incoming.sha256}: send it again"
            )
        if layout is None or size < layout.size_bytes:
            raise ModelFormat(f"the file is cut: its header describes more than the {size} bytes that it has")
        return layout
