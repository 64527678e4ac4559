"""The header of a safetensors file: what it says, and whether that may be believed.

The format: 8 bytes with the length of a JSON header (little-endian), the header, then the tensors' data. The header
maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the end of the header.
(https://github.com/huggingface/safetensors)
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedround_server.domain.errors import ModelFormat, UpdateMismatch
from fedround_server.domain.model import MAX_TENSORS, Dtype, Manifest, TensorSpec
from fedround_server.engine.format.header import read_header
from fedround_server.recent import Recent

PREFIX = 8
MAX_HEADER = 4 << 20
MAX_RANK = 16
MAX_NAME = 512
MAX_DIMENSION = 1 << 48
LARGE = 64 << 10
"""A header up to this size is read in a few milliseconds; the largest ones take hundreds."""
REMEMBERED = 2 << 20
"""Bytes of headers whose layouts are remembered; a layout takes ten times as much memory."""
NAME = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]+")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class Layout:
    """A checked header.

    Attributes:
        manifest: Type and shape of each tensor.
        offsets: Where each tensor's data begins in the file, in bytes.
        data_start: Where the data begins in the file, in bytes.
        size_bytes: Size of the whole file.
    """

    manifest: Manifest
    offsets: Mapping[str, int]
    data_start: int
    size_bytes: int


class HeaderGate:
    """Reads a header from the chunks of a file, and refuses it as soon as it can be known to be bad."""

    def __init__(self, expected: Manifest | None = None, differences: Manifest | None = None) -> None:
        """Begins before the first byte.

        Args:
            expected: What the file must contain, exactly; None for anything acceptable.
            differences: What it may contain instead, exactly.
        """
        self._expected = expected
        self._differences = differences
        self._seen = bytearray()
        self._wanted = PREFIX
        self.layout: Layout | None = None

    def takes_long(self, data: bytes) -> bool:
        """Tells whether feeding these bytes means reading a large header, which is nothing for the event loop."""
        if self.layout is not None:
            return False
        length = int.from_bytes((bytes(self._seen[:PREFIX]) + data[:PREFIX])[:PREFIX], "little")
        return LARGE < length <= len(self._seen) + len(data) - PREFIX

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the file.

        Raises:
            ModelFormat: This is no acceptable safetensors file.
            UpdateMismatch: It does not contain what it must.
        """
        if self.layout is not None:
            return
        taken = self._take(data)
        if len(self._seen) == PREFIX == self._wanted:
            self._wanted += _header_length(bytes(self._seen))
            self._take(data[taken : taken + self._wanted])
        if len(self._seen) == self._wanted > PREFIX:
            self.layout = parse_header(bytes(self._seen[PREFIX:]))
            self._seen.clear()
            if self._expected is not None:
                check_same(self.layout.manifest, self._expected, self._differences)

    def _take(self, data: bytes) -> int:
        """Takes what is wanted of some bytes; returns how many."""
        part = data[: self._wanted - len(self._seen)]
        self._seen += part
        return len(part)


def parse_header(header: bytes, *, own: bool = False) -> Layout:
    """Checks a header.

    Args:
        header: The JSON text, without the 8 bytes of its length.
        own: Whether the server keeps the file already: posteriors may have any number of tensors, and longer names.

    Returns:
        What it says; of equal headers it may be the same object.

    Raises:
        ModelFormat: The header is malformed, or describes a file that is not acceptable.
    """
    return (_read_own if own else _read_strange)(header)


def _read(header: bytes, *, own: bool) -> Layout:
    tensors = read_header(header, len(header) if own else MAX_TENSORS)
    if not tensors:
        raise ModelFormat("the file contains no tensors")
    manifest: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in tensors.items():
        if not own:
            _check_name(name)
        spec, begin, end = _parse_tensor(name, entry)
        manifest[name] = spec
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ModelFormat(
                f"tensor {name!r} begins at byte {begin} of the data, not {position}: no holes, no overlaps"
            )
        position = end
    data_start = PREFIX + len(header)
    return Layout(manifest, {name: data_start + begin for begin, _, name in spans}, data_start, data_start + position)


_read_own: Recent[bytes, Layout] = Recent(partial(_read, own=True), REMEMBERED)
_read_strange: Recent[bytes, Layout] = Recent(partial(_read, own=False), REMEMBERED)


def make_header(manifest: Manifest) -> bytes:
    """Writes everything before the data of a file with these tensors, one behind the other in the manifest's order."""
    header: dict[str, Any] = {}
    position = 0
    for name, spec in manifest.items():
        end = position + spec.num_bytes
        header[name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of eight, like in files of the reference implementation.
    text += b" " * (-len(text) % PREFIX)
    return len(text).to_bytes(PREFIX, "little") + text


def check_same(actual: Manifest, expected: Manifest, differences: Manifest | None = None) -> None:
    """Compares what is there with what must be.

    Args:
        actual: What is there.
        expected: What must be there.
        differences: What may be there instead: meant if it has one of the differences.

    Raises:
        UpdateMismatch: A tensor is missing, is one too many, or has another type or shape.
    """
    if actual in (expected, differences):
        return
    hint = ""
    if differences is not None and any(_is_difference(name, actual, expected, differences) for name in actual):
        expected, hint = differences, ": differences of all F32 and F64 tensors, or of none"
    if missing := sorted(expected.keys() - actual.keys()):
        raise UpdateMismatch(f"the update lacks tensors that the round asks for: {_some(missing)}")
    if surplus := sorted(actual.keys() - expected.keys()):
        raise UpdateMismatch(f"the update has tensors that the round does not ask for: {_some(surplus)}")
    for name, spec in expected.items():
        found = actual[name]
        if found != spec:
            raise UpdateMismatch(
                f"tensor {name!r} is {found.dtype.name}{list(found.shape)},"
                f" and the round asks for {spec.dtype.name}{list(spec.shape)}{hint}"
            )


def _is_difference(name: str, actual: Manifest, expected: Manifest, differences: Manifest) -> bool:
    spec = differences.get(name)
    return spec is not None and spec != expected[name] and spec.dtype is actual[name].dtype


def _header_length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "little")
    if 2 <= length <= MAX_HEADER:
        return length
    # Looked at last: the lengths 640, 896, ... begin like a pickle.
    if prefix.startswith(PICKLE_STARTS):
        raise ModelFormat(
            "this is a pickle (a torch .pt file), and the server unpickles nothing:"
            " run `fedround convert FILE` and send the safetensors file that it writes"
        )
    raise ModelFormat(
        f"this is not a safetensors file (its header would have {length} bytes, allowed are 2 to {MAX_HEADER}):"
        " save the state dict with safetensors, or run `fedround convert FILE`"
    )


def _check_name(name: str) -> None:
    parts = name.split("/")
    if not NAME.fullmatch(name) or len(name) > MAX_NAME or ".." in parts or "" in parts:
        raise ModelFormat(
            f"tensor name {name[:80]!r} is not acceptable: 1 to {MAX_NAME} characters that UTF-8 can encode,"
            " no control characters, no backslashes, no path tricks"
        )


def _parse_tensor(name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFormat(f"tensor {name!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in Dtype.__members__:
        accepted = ", ".join(Dtype.__members__)
        raise ModelFormat(f"tensor {name!r} has the dtype {str(dtype)[:40]!r}; accepted are {accepted}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        raise ModelFormat(f"tensor {name!r} has no acceptable shape: up to {MAX_RANK} whole numbers >= 0")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ModelFormat(f"tensor {name!r} needs data_offsets [begin, end]")
    spec = TensorSpec(Dtype[dtype], tuple(shape))
    if spec.num_elements == 0:
        raise ModelFormat(f"tensor {name!r} is empty: leave empty tensors out")
    begin, end = offsets
    if end - begin != spec.num_bytes:
        raise ModelFormat(f"tensor {name!r} needs {spec.num_bytes} bytes, its data_offsets give {end - begin}")
    return spec, begin, end


def _are_sizes(values: Any) -> bool:
    # bool is an int in Python, but not here.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_DIMENSION for value in values)


def _some(names: list[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
