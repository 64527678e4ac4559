"""Which objects a bucket has.

    objects/AA/SHA256                   a blob of at most PART_BYTES
    objects/AA/SHA256.parts             the list of the parts of a larger blob
    parts/USER/UPLOAD/ATTEMPT/N         a part, as an attempt at an upload has put it
    parts/USER/UPLOAD/ATTEMPT/blob      the digest of the blob that the attempt has become
    uploads/USER/UPLOAD                 the list of the parts of an upload that is not finished
    removing/SHA256                     a blob is being removed

A list of parts is a JSON array of keys and sizes. A part may be used up to a size that is less than its own.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

from fedround_server.blobs.refs import StagedRef, UploadRef

PART_BYTES = 8 << 20
"""Size of a part, and of the largest blob that is one object: to change it makes stored blobs unreadable."""
OBJECTS, PARTS, UPLOADS, REMOVING = "objects/", "parts/", "uploads/", "removing/"
LIST, MARKER = ".parts", "/blob"
BLOB = re.compile(r"objects/[0-9a-f]{2}/([0-9a-f]{64})(?:\.parts)?")
STAGED = "staged"
"""In place of the user, in the parts of files that the server makes."""


@dataclass(frozen=True, slots=True)
class Part:
    """The first bytes of an object, so many of them."""

    key: str
    size_bytes: int

    @property
    def group(self) -> str:
        """The prefix of the attempt that has put it."""
        return self.key[: self.key.rindex("/") + 1]


def blob_key(sha256: str) -> str:
    """Returns the key of a blob that is one object."""
    return f"{OBJECTS}{sha256[:2]}/{sha256}"


def list_key(sha256: str) -> str:
    """Returns the key of the list of a larger blob's parts."""
    return blob_key(sha256) + LIST


def digest_of(key: str) -> str | None:
    """Returns the digest of a blob by one of its keys; None for the key of something else."""
    found = BLOB.fullmatch(key)
    return None if found is None else found[1]


def upload_key(ref: UploadRef) -> str:
    """Returns the key of the list of an upload's parts."""
    return f"{UPLOADS}{ref.user_id}/{ref.upload_id}"


def upload_of(key: str) -> UploadRef | None:
    """Returns the upload of a key of its list, or of one of its parts; None for the key of something else."""
    words = key.split("/")
    return UploadRef(words[1], words[2]) if len(words) in (3, 5) else None


def new_group(ref: UploadRef | StagedRef) -> str:
    """Returns the prefix of the parts of a new attempt."""
    name = f"{ref.user_id}/{ref.upload_id}" if isinstance(ref, UploadRef) else f"{STAGED}/{ref.name}"
    return f"{PARTS}{name}/{uuid4()}/"


def marker_key(group: str) -> str:
    """Returns the key of the object that says which blob an attempt has become."""
    return group.removesuffix("/") + MARKER


def removing_key(sha256: str) -> str:
    """Returns the key of the object that says that a blob is being removed."""
    return REMOVING + sha256


def encode(parts: Iterable[Part]) -> bytes:
    """Encodes a list of parts."""
    return json.dumps([[part.key, part.size_bytes] for part in parts]).encode()


def decode(data: bytes) -> list[Part]:
    """Decodes a list of parts.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return [Part(str(key), int(size)) for key, size in json.loads(data)]
    except (TypeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def size_of(parts: Iterable[Part]) -> int:
    """Returns the size of a file of parts, in bytes."""
    return sum(part.size_bytes for part in parts)


def first(parts: Iterable[Part], size: int) -> list[Part]:
    """Returns the parts of the first bytes of a file, so many of them."""
    found: list[Part] = []
    for part in parts:
        if size > 0:
            found.append(Part(part.key, min(size, part.size_bytes)))
        size -= part.size_bytes
    return found
