"""Checks a file's header while its first bytes arrive."""

from collections.abc import Callable, Mapping

from fedround_server.domain.errors import ModelFormat
from fedround_server.domain.model import Manifest
from fedround_server.engine.format.header import read_metadata
from fedround_server.engine.format.manifest import PREFIX, Layout, parse_header

MAX_HEADER = 4 << 20
"""Size of the largest header that is accepted, in bytes."""
LARGE = 64 << 10
"""Headers up to this size are parsed in a few milliseconds; the largest ones take hundreds."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class HeaderGate:
    """Reads the header from the chunks of a file, and rejects it as early as possible.

    Attributes:
        layout: What the header says; None until it is complete.
    """

    def __init__(
        self,
        check: Callable[[Manifest], None] | None = None,
        check_metadata: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        """Takes any acceptable header whose tensors and metadata pass checks, which raise errors about others."""
        self._check = check
        self._check_metadata = check_metadata
        self._seen = bytearray()
        self._wanted = PREFIX
        self.layout: Layout | None = None

    def takes_long(self, data: bytes) -> bool:
        """Returns whether feeding these bytes parses a large header, which would block the event loop."""
        if self.layout is not None:
            return False
        length = int.from_bytes((bytes(self._seen[:PREFIX]) + data[:PREFIX])[:PREFIX], "little")
        return LARGE < length <= len(self._seen) + len(data) - PREFIX

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the file.

        Raises:
            ModelFormat: This is no acceptable safetensors file.
            FedroundError: A check raised it.
        """
        if self.layout is not None:
            return
        taken = self._take(data)
        if len(self._seen) == PREFIX == self._wanted:
            self._wanted += _header_length(bytes(self._seen))
            self._take(data[taken : taken + self._wanted])
        if len(self._seen) == self._wanted > PREFIX:
            header = bytes(self._seen[PREFIX:])
            self.layout = parse_header(header)
            self._seen.clear()
            if self._check is not None:
                self._check(self.layout.manifest)
            if self._check_metadata is not None:
                self._check_metadata(read_metadata(header))

    def _take(self, data: bytes) -> int:
        """Takes what is missing of the header from some bytes; returns how many."""
        part = data[: self._wanted - len(self._seen)]
        self._seen += part
        return len(part)


def _header_length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "little")
    if 2 <= length <= MAX_HEADER:
        return length
    # Checked last: the lengths 640, 896, ... begin like a pickle.
    if prefix.startswith(PICKLE_STARTS):
        raise ModelFormat(
            "this is a pickle (a torch .pt file), and the server unpickles nothing:"
            " run `fedround convert FILE` and send the safetensors file that it writes"
        )
    raise ModelFormat(
        f"this is not a safetensors file (its header would have {length} bytes, allowed are 2 to {MAX_HEADER}):"
        " save the state dict with safetensors, or run `fedround convert FILE`"
    )
