"""The tensors of versions, which are stored as one file or as a base and a delta."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.engine.format.manifest import PREFIX, Layout
from fedround_server.engine.format.tensors import TensorFile, Tensors, open_blob


@contextmanager
def open_version(files: BlobFiles, file: VersionFile, ahead: Executor | None = None) -> Iterator[Tensors]:
    """Opens the file of a version, which is verified while it is read.

    Args:
        files: Where the stored files are.
        file: The file.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: A stored file is missing, or is not what was stored.
    """
    if isinstance(file, BlobRef):
        with open_blob(files, file, ahead=ahead) as whole:
            yield whole
        return
    with open_blob(files, file.base, ahead=ahead) as base, open_blob(files, file.delta, ahead=ahead) as delta:
        yield MergedTensors(base, delta)


class MergedTensors:
    """The tensors of a base, of which those of a delta take the place; `Tensors` describes the methods.

    Attributes:
        layout: The tensors of the base first. No tensor of the delta is adjacent to one of the base.
    """

    def __init__(self, base: TensorFile, delta: TensorFile) -> None:
        self._base = base
        self._delta = delta
        kept = {name: spec for name, spec in base.layout.manifest.items() if name not in delta.layout.manifest}
        behind = base.layout.size_bytes + PREFIX
        offsets = {name: base.layout.offsets[name] for name in kept}
        offsets |= {name: behind + offset for name, offset in delta.layout.offsets.items()}
        size = behind + delta.layout.size_bytes
        self.layout = Layout(kept | dict(delta.layout.manifest), offsets, base.layout.data_start, size)

    def block(self, name: str, start: int, length: int) -> Tensor:
        """Returns numbers of a flattened tensor."""
        return self._file(name).block(name, start, length)

    def tensor(self, name: str) -> Tensor:
        """Returns a copy of a whole tensor."""
        return self._file(name).tensor(name)

    def _file(self, name: str) -> TensorFile:
        return self._delta if name in self._delta.layout.manifest else self._base
