"""Models: their tensors, and the immutable files of their versions."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import prod
from typing import TypeAlias


class Dtype(enum.Enum):
    """The tensor types that fedround accepts, by their safetensors names.

    Attributes:
        itemsize: Bytes an element.
        is_floating: Whether it is averaged as real numbers; integers and booleans have a rule of their own.
        is_complex: Whether an element is two real numbers, F32 each: its real and its imaginary part.
    """

    F64 = ("F64", 8)
    F32 = ("F32", 4)
    F16 = ("F16", 2)
    BF16 = ("BF16", 2)
    F8_E4M3 = ("F8_E4M3", 1)
    F8_E5M2 = ("F8_E5M2", 1)
    C64 = ("C64", 8)
    I64 = ("I64", 8)
    I32 = ("I32", 4)
    I16 = ("I16", 2)
    I8 = ("I8", 1)
    U64 = ("U64", 8)
    U32 = ("U32", 4)
    U16 = ("U16", 2)
    U8 = ("U8", 1)
    BOOL = ("BOOL", 1)

    def __init__(self, name: str, itemsize: int) -> None:
        # Fields, as properties of enums take longer than what asks for them, again and again.
        self.itemsize = itemsize
        self.is_floating = name[0] in "FC" or name == "BF16"
        self.is_complex = name == "C64"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one tensor."""

    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return prod(self.shape)

    @property
    def num_numbers(self) -> int:
        """Number of real numbers, of which a complex element has two."""
        return self.num_elements * (2 if self.dtype.is_complex else 1)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data."""
        return self.num_elements * self.dtype.itemsize


Manifest = Mapping[str, TensorSpec]
"""The tensors of a model: name -> dtype and shape. Every update must have exactly those of its model."""


MAX_TENSORS = 20_000
"""How many tensors an uploaded file may have."""
MAX_RANK = 16
"""How many dimensions a tensor may have."""
MAX_NAME = 512
"""Characters of the name of a tensor of an uploaded file."""


LAST, BEST, PINNED = "last", "best", "pinned"
"""Tags with a meaning of their own: the server moves the first two, and `pinned` may be on any number of versions."""


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A reference to an immutable file, by its content.

    Attributes:
        checksums: The CRC-32C of each of its blocks, with which the file is verified when it is read; empty if they are
            not known. Two references to the same bytes are equal whether or not both have them.
    """

    sha256: str
    size_bytes: int
    checksums: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BaseAndDelta:
    """The file of a version that is stored as two files.

    The whole file has the metadata of the base, first the tensors that only the base has, then those of the delta, each
    in the order of their file.

    Attributes:
        sha256: The digest of the whole file, which is not stored.
        size_bytes: Its size.
        base: What the versions of the model share.
        delta: The tensors that replace those of the base.
    """

    sha256: str
    size_bytes: int
    base: BlobRef
    delta: BlobRef


VersionFile: TypeAlias = BlobRef | BaseAndDelta
"""The file of a version: stored as it is, or as a base and a delta."""


def blobs_of(file: VersionFile) -> tuple[BlobRef, ...]:
    """Returns the stored files that make up the file of a version."""
    return (file,) if isinstance(file, BlobRef) else (file.base, file.delta)


POSTERIOR = "posterior"
"""The kind of artifact that a SWAG posterior is; its details have the rank of the low-rank part."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that belongs to a version of a model.

    Attributes:
        kind: What it is: `posterior`, for one. A version has at most one artifact of a kind.
        details: What is known of it without opening it.
    """

    kind: str
    blob: BlobRef
    details: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model; the version counts the updates of the global model.

    Attributes:
        blob: Its file. If the version is not stored any more, only the digest and the size mean something.
        stored: Whether the files are still stored; retention drops those of old versions without a tag.
        artifacts: Its artifacts by kind.
    """

    model_id: str
    version: int
    blob: VersionFile
    create_time: datetime
    stored: bool = True
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version with its tags, sorted, and the means of the reports of its evaluation round."""

    version: ModelVersion
    tags: tuple[str, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Model:
    """A model, with its latest version; in lists its manifest is empty."""

    model_id: str
    name: str
    description: str
    owner_id: str
    source_model_id: str | None
    manifest: Manifest
    latest: ModelVersion
    create_time: datetime
    source_version: int | None = None
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class NewModel:
    """A model to store; of several with one upload_id, the owner's name for the upload, the first makes the model."""

    name: str
    description: str
    manifest: Manifest
    blob: VersionFile
    architecture: str = ""
    upload_id: str | None = None
    is_finite: bool = True
