"""Safetensors files that are made of the tensors of stored ones, without torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fedround_server.blobs import BlobFiles, Slice, SliceReader
from fedround_server.domain.model import BaseAndDelta, BlobRef, Manifest, VersionFile
from fedround_server.domain.tensor_selection import matcher
from fedround_server.engine.format.header import read_metadata
from fedround_server.engine.format.manifest import PREFIX, Layout, make_header, parse_header


@dataclass(frozen=True, slots=True)
class Assembly:
    """A safetensors file: its header, and the slices of stored files that follow it."""

    header: bytes
    slices: tuple[Slice, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(one.size_bytes for one in self.slices)

    def open(self, files: BlobFiles, offset: int = 0) -> SliceReader:
        """Opens the file for reading from an offset in bytes.

        Raises:
            BlobDamaged: A stored file is missing, or has another size.
        """
        return SliceReader(files, self.header, self.slices, offset)


@dataclass(frozen=True, slots=True)
class StoredHeader:
    """The header of a stored file: its layout, and its metadata."""

    layout: Layout
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, files: BlobFiles, blob: BlobRef) -> "StoredHeader":
        """Reads and verifies the header of a stored file.

        Raises:
            BlobDamaged: The file is missing, or its header is not what was stored.
        """
        with SliceReader(files, b"", [Slice(blob, 0, PREFIX)]) as reader:
            end = PREFIX + int.from_bytes(reader.read().data, "little")
        text = bytearray()
        with SliceReader(files, b"", [Slice(blob, PREFIX, end)]) as reader:
            while data := reader.read().data:
                text += data
        return cls.parse(bytes(text))

    @classmethod
    def parse(cls, text: bytes) -> "StoredHeader":
        """Parses the header of a stored file, without the 8 bytes of its length."""
        return cls(parse_header(text, own=True), read_metadata(text))


def in_order(layout: Layout) -> list[str]:
    """Returns the names of a file's tensors in the order of their data."""
    # Tensors without data begin where the next one does, in the order of the header.
    return sorted(layout.offsets, key=layout.offsets.__getitem__)


def whole_prefix(base: StoredHeader, blob: BlobRef, changed: Manifest) -> Assembly:
    """Returns the part of a whole file that precedes the data of its delta.

    Args:
        base: The header of the base.
        blob: The base.
        changed: The tensors of the delta, in the order of their data.
    """
    kept = [name for name in in_order(base.layout) if name not in changed]
    manifest = {name: base.layout.manifest[name] for name in kept} | dict(changed)
    return Assembly(make_header(manifest, base.metadata), _slices(blob, base.layout, kept))


def assemble(files: BlobFiles, file: VersionFile, globs: tuple[str, ...] = ()) -> Assembly:
    """Returns the whole file of a version, or a file of some of its tensors.

    Args:
        files: Where the stored files are.
        file: The file of the version.
        globs: Select tensors; empty for all.

    Raises:
        BlobDamaged: A stored file is missing, or its header is not what was stored.
        KeyError: No tensor is selected.
    """
    is_selected = matcher(globs) if globs else lambda _: True
    blob = file if isinstance(file, BlobRef) else file.base
    base = StoredHeader.read(files, blob)
    changed: Manifest = {}
    slices: tuple[Slice, ...] = ()
    if isinstance(file, BaseAndDelta):
        delta = StoredHeader.read(files, file.delta).layout
        changed = delta.manifest
        chosen = list(filter(is_selected, in_order(delta)))
        slices = _slices(file.delta, delta, chosen)
    else:
        chosen = []
    kept = [name for name in in_order(base.layout) if name not in changed and is_selected(name)]
    if not kept and not chosen:
        raise KeyError(globs)
    manifest = {name: base.layout.manifest[name] for name in kept} | {name: changed[name] for name in chosen}
    return Assembly(make_header(manifest, base.metadata), _slices(blob, base.layout, kept) + slices)


def _slices(blob: BlobRef, layout: Layout, names: Collection[str]) -> tuple[Slice, ...]:
    """Returns the data of tensors of a file, in the order given; adjacent ones are one slice."""
    spans: list[tuple[int, int]] = []
    for name in names:
        start = layout.offsets[name]
        end = start + layout.manifest[name].num_bytes
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        elif end > start:
            spans.append((start, end))
    return tuple(Slice(blob, start, end) for start, end in spans)
