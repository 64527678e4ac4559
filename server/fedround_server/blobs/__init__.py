"""Immutable files by the SHA-256 of their bytes, and the uploads that become them.

Callers use the protocols of this package; the composition root chooses the implementation.
"""

from fedround_server.blobs.checksums import (
    BLOCK_BYTES,
    BlobDamaged,
    BlockChecksums,
    damaged,
    map_damage,
    open_blob,
    verify_block,
)
from fedround_server.blobs.digest import BlobDigest
from fedround_server.blobs.disk_full import map_disk_full
from fedround_server.blobs.protocol import UNREFERENCED_SECONDS, BlobFiles, BlobReader, Blobs, BlobWriter
from fedround_server.blobs.refs import FileRef, SmallFile, StagedBlob, StagedRef, UploadRef
from fedround_server.blobs.segment import read_entries
from fedround_server.blobs.slices import Slice, SliceReader

__all__ = [
    "BLOCK_BYTES",
    "UNREFERENCED_SECONDS",
    "BlobDamaged",
    "BlobDigest",
    "BlobFiles",
    "BlobReader",
    "BlobWriter",
    "Blobs",
    "BlockChecksums",
    "FileRef",
    "Slice",
    "SliceReader",
    "SmallFile",
    "StagedBlob",
    "StagedRef",
    "UploadRef",
    "damaged",
    "map_damage",
    "map_disk_full",
    "open_blob",
    "read_entries",
    "verify_block",
]
