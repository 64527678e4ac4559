"""Files that are downloaded: those of versions, their parts, and selections of their tensors."""

import enum
import hashlib
from dataclasses import dataclass
from typing import Self

from fedround_server.blobs import BlobFiles, BlobReader, Blobs
from fedround_server.domain.errors import FieldInvalid, ModelNotFound
from fedround_server.domain.model import POSTERIOR, BlobRef, ModelVersion, VersionFile
from fedround_server.engine.format.assembly import Assembly, assemble


class ModelPart(enum.Enum):
    """What is downloaded of a version."""

    MODEL = "MODEL"
    POSTERIOR = "POSTERIOR"
    DELTA = "DELTA"
    BASE = "BASE"


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file that is downloaded.

    Attributes:
        name: What it is, for errors.
        version: The version of the model that it belongs to.
        source: The stored file, or what the file is made of.
    """

    name: str
    version: int
    sha256: str
    size_bytes: int
    source: BlobRef | Assembly

    @classmethod
    def of(cls, name: str, version: int, blob: BlobRef) -> Self:
        """Returns a file that is stored as it is."""
        return cls(name, version, blob.sha256, blob.size_bytes, blob)

    def open_cached(self, blobs: Blobs, offset: int) -> BlobReader | None:
        """Opens the file like `open` if it is stored as it is, and that takes no waiting; otherwise returns None."""
        return blobs.open_cached(self.source, offset) if isinstance(self.source, BlobRef) else None

    def open(self, blobs: Blobs, offset: int) -> BlobReader:
        """Opens the file for reading from an offset in bytes. May wait.

        Raises:
            BlobDamaged: A stored file is missing, or has another size.
        """
        if isinstance(self.source, BlobRef):
            return blobs.open(self.source, offset)
        return self.source.open(blobs.files, offset)


def name_of(version: ModelVersion, part: ModelPart) -> str:
    """Returns what a file of a version is, for errors."""
    of = f"version {version.version} of the model {version.model_id}"
    return of if part is ModelPart.MODEL else f"the {part.value.lower()} of {of}"


def file_of(version: ModelVersion, part: ModelPart) -> VersionFile:
    """Returns a file of a version.

    Raises:
        ModelNotFound: The version has no such file.
    """
    file = version.blob
    if part is ModelPart.MODEL:
        return file
    if part is ModelPart.POSTERIOR:
        posterior = version.artifacts.get(POSTERIOR)
        if posterior is None:
            raise ModelNotFound(f"{version.model_id} in version {version.version} with a SWAG posterior")
        return posterior.blob
    if isinstance(file, BlobRef):
        raise ModelNotFound(
            f"{version.model_id} in version {version.version} with a {part.value.lower()} (the version is stored whole:"
            " download the model)"
        )
    return file.delta if part is ModelPart.DELTA else file.base


def assembled(
    files: BlobFiles, name: str, version: int, file: VersionFile, globs: tuple[str, ...], sha256: str | None
) -> ServedFile:
    """Returns a file that is made of stored ones. Of a selection of tensors, all is read to compute the digest.

    Args:
        files: Where the stored files are.
        name: What the file is.
        version: The version.
        file: The file of the version.
        globs: Select tensors; empty for all.
        sha256: The digest of the selection, if it is known.

    Raises:
        BlobDamaged: A stored file is damaged.
        FieldInvalid: No tensor matches a glob.
    """
    try:
        assembly = assemble(files, file, globs)
    except KeyError:
        raise FieldInvalid("tensors", f"no tensor of {name} matches: GetModel lists their names") from None
    if not globs:
        return ServedFile(name, version, file.sha256, assembly.size_bytes, assembly)
    if sha256 is None:
        digest = hashlib.sha256()
        with assembly.open(files) as reader:
            while data := reader.read().data:
                digest.update(data)
        sha256 = digest.hexdigest()
    return ServedFile(f"tensors of {name}", version, sha256, assembly.size_bytes, assembly)
