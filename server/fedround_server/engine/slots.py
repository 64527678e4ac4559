"""The state of aggregations: files with numbers for each element, read and written along with the model."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.model import BlobRef, Dtype, Manifest, TensorSpec
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.runs import Run
from fedround_server.engine.format.tensors import TensorFile, open_blob
from fedround_server.engine.format.writer import TensorWriter

PRECISE = (Dtype.F64, Dtype.C64)
"""Types of which the state has numbers in the same type; of others it has float32."""


def as_kept(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of float64 numbers of a state, in the type in which a model of some dtype has them."""
    return values.to(torch.float64 if dtype == torch.float64 else torch.float32, copy=True)


class Slots:
    """The files of a state, opened, and those of the next one, which are written in order.

    Attributes:
        found: The opened files of the state before, by slot; a slot that has none begins anew.
    """

    def __init__(self, found: Mapping[str, TensorFile], writers: Mapping[str, TensorWriter]) -> None:
        self.found = found
        self._writers = writers

    def read(self, slot: str, run: Run, start: int, length: int) -> Tensor | None:
        """Returns elements of a slot: shape (length,), float64; None if it begins anew."""
        file = self.found.get(slot)
        return None if file is None else file.block(run.first, start, length).double()

    def write(self, slot: str, values: Tensor) -> None:
        """Appends elements of a slot, which must not change any more.

        Args:
            slot: The slot.
            values: Shape (elements,), in the type of the slot.
        """
        self._writers[slot].write(values)

    def finish(self) -> dict[str, BlobRef]:
        """Forces the files to disk, and returns what they contain, by slot.

        Raises:
            OSError: One could not be written.
        """
        return {slot: writer.finish() for slot, writer in self._writers.items()}


@contextmanager
def open_slots(
    files: BlobFiles, state: Mapping[str, BlobRef], targets: Mapping[str, Path], tensors: Manifest, ahead: Executor
) -> Iterator[Slots]:
    """Opens a state, and begins the next one.

    Args:
        files: Where the stored files are.
        state: The files by slot. One that has other tensors is left out: the slot begins anew.
        targets: The paths of the new files by slot.
        tensors: The tensors that have a state, in the order in which they will be written.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: A file is not what was stored.
    """
    kept = {
        name: TensorSpec(spec.dtype if spec.dtype in PRECISE else Dtype.F32, spec.shape)
        for name, spec in tensors.items()
    }
    header = make_header(kept)
    with ExitStack() as stack:
        opened = {
            slot: stack.enter_context(open_blob(files, blob, ahead=ahead))
            for slot, blob in state.items()
            if slot in targets
        }
        # In the same order, too: their tensors are adjacent where those of the model are.
        found = {
            slot: file for slot, file in opened.items() if list(file.layout.manifest.items()) == list(kept.items())
        }
        writers = {slot: stack.enter_context(TensorWriter(path, header)) for slot, path in targets.items()}
        yield Slots(found, writers)
