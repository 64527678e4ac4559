"""The state of aggregations: files with numbers for each element, read and written along with the model."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import AggregationState
from fedround_server.domain.control import state_tensors
from fedround_server.domain.model import BlobRef, Manifest
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.runs import Run
from fedround_server.engine.format.tensors import TensorFile, open_blob
from fedround_server.engine.format.writer import Bytes, TensorWriter


def as_kept(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a copy of float64 numbers of a state, in the type in which a model of some dtype has them."""
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    most = torch.finfo(kept).max
    # The square of a large difference is beyond the type's range; Inf would stay in the state for ever.
    return values.clamp(-most, most).to(kept)


class Slots:
    """The files of a state, opened.

    Attributes:
        found: The opened files of the state before, by slot; a slot that has none begins anew.
        steps: How many aggregations have made each slot of the state before; 0 for one that begins anew.
        header: Everything before the data of a file of the next state.
    """

    def __init__(self, found: Mapping[str, TensorFile], steps: Mapping[str, int], header: bytes) -> None:
        self.found = found
        self.steps = steps
        self.header = header

    def read(self, slot: str, run: Run, start: int, length: int) -> Tensor | None:
        """Returns a copy of elements of a slot: shape (length,), float64; None if it begins anew."""
        file = self.found.get(slot)
        # A copy, as optimizers overwrite it, and the file is mapped to be read.
        return None if file is None else file.block(run.first, start, length).to(torch.float64, copy=True)


class SlotWriter(AbstractContextManager["SlotWriter", None]):
    """Writes the files of the next state, in order."""

    def __init__(self, slots: Slots, targets: Mapping[str, Path]) -> None:
        """Begins the files, which must not exist.

        Args:
            slots: The state before.
            targets: The paths by slot.
        """
        with ExitStack() as stack:
            self._writers = {
                slot: stack.enter_context(TensorWriter(path, slots.header)) for slot, path in targets.items()
            }
            self._open = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def write(self, slot: str, values: Bytes) -> None:
        """Appends elements of a slot, in its type; they must not change any more."""
        self._writers[slot].write(values)

    def finish(self) -> dict[str, BlobRef]:
        """Forces the files to disk, and returns what they contain, by slot.

        Raises:
            OSError: One could not be written.
        """
        return {slot: writer.finish() for slot, writer in self._writers.items()}


@contextmanager
def open_slots(
    files: BlobFiles, state: AggregationState, slots: Collection[str], tensors: Manifest, ahead: Executor
) -> Iterator[Slots]:
    """Opens a state.

    Args:
        files: Where the stored files are.
        state: The state. If a file of a stage is missing or has other tensors, all slots of the stage begin anew.
        slots: The slots of the next state.
        tensors: The tensors that have a state, in the order in which they will be written.
        ahead: Verifies what is likely to be read next.

    Raises:
        BlobDamaged: A file is not what was stored.
    """
    kept = state_tensors(tensors)
    with ExitStack() as stack:
        opened = {
            slot: stack.enter_context(open_blob(files, blob, ahead=ahead))
            for slot, blob in state.slots.items()
            if slot in slots
        }
        # In the same order, too: their tensors are adjacent where those of the model are.
        fitting = {slot for slot, file in opened.items() if list(file.layout.manifest.items()) == list(kept.items())}
        anew = {_stage(slot) for slot in set(slots) - fitting}
        found = {slot: file for slot, file in opened.items() if _stage(slot) not in anew}
        steps = {slot: state.steps[slot] if slot in found else 0 for slot in slots}
        yield Slots(found, steps, make_header(kept))


def _stage(slot: str) -> str:
    return slot.partition("/")[0]
