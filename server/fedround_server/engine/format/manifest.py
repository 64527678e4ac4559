"""The header of a safetensors file: what it says, and whether that is acceptable.

The format: 8 bytes with the length of a JSON header (little-endian), the header, then the tensors' data. The header
maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the end of the header.
(https://github.com/huggingface/safetensors)
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached

from fedround_server.domain.errors import ModelFormat
from fedround_server.domain.model import MAX_NAME, MAX_RANK, MAX_TENSORS, Dtype, Manifest, TensorSpec
from fedround_server.engine.format.header import METADATA, read_header

PREFIX = 8
MAX_DIMENSION = 1 << 48
CACHED_BYTES = 2 << 20
"""Bytes of headers whose layouts are cached; a layout takes ten times as much memory."""
NAME = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]+")


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A checked header. Two of them are equal if they are the same object, so that they can be keys.

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


def parse_header(header: bytes, *, own: bool = False) -> Layout:
    """Parses and checks a header. The latest ones are cached: the updates of a training have equal headers.

    Args:
        header: The JSON text, without the 8 bytes of its length.
        own: Whether the server stores the file already: posteriors may have any number of tensors, and longer names,
            and states may have no tensors.

    Returns:
        What it says; for equal headers it may be the same object.

    Raises:
        ModelFormat: The header is malformed, or describes a file that is not acceptable.
    """
    return _parse_header(header, own)


@cached(LRUCache(CACHED_BYTES, getsizeof=lambda layout: layout.data_start), lock=Lock())
def _parse_header(header: bytes, own: bool) -> Layout:
    tensors = read_header(header, len(header) if own else MAX_TENSORS)
    if not tensors and not own:
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


def make_header(manifest: Manifest, metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns everything before the data of a file with these tensors, one after the other in the manifest's order."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name, spec in manifest.items():
        end = position + spec.num_bytes
        header[name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of eight, as in files of the reference implementation.
    text += b" " * (-len(text) % PREFIX)
    return len(text).to_bytes(PREFIX, "little") + text


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
    if prod(size for size in shape if size) > MAX_DIMENSION:
        raise ModelFormat(
            f"tensor {name!r} has no acceptable shape: its sizes, without zeros, have too large a product"
        )
    begin, end = offsets
    if end - begin != spec.num_bytes:
        raise ModelFormat(f"tensor {name!r} needs {spec.num_bytes} bytes, its data_offsets give {end - begin}")
    return spec, begin, end


def _are_sizes(values: Any) -> bool:
    # bool is a subclass of int.
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_DIMENSION for value in values)
