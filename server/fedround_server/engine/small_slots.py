"""The parts of the state of aggregations that do not depend on the size of the model: files with one tensor each."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedround_server.blobs import BlobFiles
from fedround_server.domain.aggregation import Aggregation, AggregationState
from fedround_server.domain.model import BlobRef, Dtype, TensorSpec
from fedround_server.engine.format.manifest import make_header
from fedround_server.engine.format.tensors import open_blob
from fedround_server.engine.format.writer import TensorWriter
from fedround_server.engine.noise import KEY_BYTES, new_key

NAME = "value"
NORM = TensorSpec(Dtype.F64, ())
KEY = TensorSpec(Dtype.U8, (KEY_BYTES,))


class SmallSlots:
    """The norm of adaptive clipping, and the secret of trees.

    Attributes:
        norm: The norm that the state before has; None if it has none.
        key: The secret; a new one if the state before has none.
        steps: How many aggregations have made each slot; 0 for one that begins anew.
    """

    def __init__(self, files: BlobFiles, aggregation: Aggregation, state: AggregationState) -> None:
        """Reads a state.

        Args:
            files: Where the stored files are.
            aggregation: The aggregation.
            state: What the aggregation before has left.

        Raises:
            BlobDamaged: A file is not what was stored.
        """
        slots = ((aggregation.norm_slot, NORM), (aggregation.key_slot, KEY))
        self._slots = {slot: spec for slot, spec in slots if slot is not None}
        found = {slot: _read(files, state, slot, spec) for slot, spec in self._slots.items()}
        self.steps = {slot: 0 if value is None else state.steps[slot] for slot, value in found.items()}
        norm, key = (found.get(slot or "") for slot in (aggregation.norm_slot, aggregation.key_slot))
        self.norm = None if norm is None else float(norm)
        self.key = new_key() if key is None else bytes(key.tolist())

    def write(self, targets: Mapping[str, Path], norm: float) -> dict[str, BlobRef]:
        """Writes the state for the next aggregation, and returns its files by slot.

        Args:
            targets: The paths of the files by slot; others are left out.
            norm: The norm of the next round.

        Raises:
            OSError: One could not be written.
        """
        values = {
            NORM: torch.tensor(norm, dtype=torch.float64).view(1),
            KEY: torch.tensor(list(self.key), dtype=torch.uint8),
        }
        return {
            slot: _write(targets[slot], spec, values[spec]) for slot, spec in self._slots.items() if slot in targets
        }


def _read(files: BlobFiles, state: AggregationState, slot: str, spec: TensorSpec) -> Tensor | None:
    """Returns a copy of what a slot has; None if it has none, or something else."""
    if slot not in state.slots:
        return None
    with open_blob(files, state.slots[slot]) as file:
        if dict(file.layout.manifest) != {NAME: spec}:
            return None
        return file.block(NAME, 0, spec.num_numbers).clone()


def _write(path: Path, spec: TensorSpec, value: Tensor) -> BlobRef:
    with TensorWriter(path, make_header({NAME: spec})) as writer:
        writer.write(value)
        return writer.finish()
