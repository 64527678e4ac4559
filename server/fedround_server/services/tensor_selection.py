"""Which tensors updates have, and the parts of versions: messages to domain objects and back."""

from collections.abc import Collection
from typing import Any

from fedround.v1 import training_pb2
from fedround_server.domain.aggregation import Aggregation, DaisyChaining
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.domain.uncertainty import Swag, Uncertainty
from fedround_server.services import fields

MAX_GLOBS = 100
MAX_GLOB = 512


def read(message: training_pb2.TensorSelection, chosen: Aggregation, method: Uncertainty) -> TensorSelection:
    """Reads a selection.

    Args:
        message: The selection.
        chosen: The training's aggregation.
        method: The training's uncertainty method.

    Raises:
        FieldInvalid: A field is malformed, or does not go with another one.
    """
    selection = TensorSelection(
        parse_globs("spec.tensors.trainable", message.trainable),
        parse_globs("spec.tensors.private", message.private),
        fields.parse_digest("spec.tensors.external_base_sha256", message.external_base_sha256),
    )
    if selection == ALL_TENSORS:
        return selection
    if isinstance(chosen.rule, DaisyChaining):
        raise FieldInvalid(
            "spec.tensors", "does not go with fed_dc, whose local models go on whole: choose another aggregation"
        )
    if isinstance(method, Swag):
        raise FieldInvalid(
            "spec.tensors", "does not go with swag, which collects moments of all weights: choose one of them"
        )
    return selection


def write(found: TensorSelection) -> training_pb2.TensorSelection | None:
    """Encodes a selection; None if it selects all."""
    if found == ALL_TENSORS:
        return None
    return training_pb2.TensorSelection(
        trainable=found.trainable, private=found.private, external_base_sha256=found.external_base_sha256 or ""
    )


def parts(file: VersionFile) -> dict[str, Any]:
    """Encodes the parts of a version that is stored as a base and a delta."""
    if isinstance(file, BlobRef):
        return {}
    return {
        "base_sha256": file.base.sha256,
        "delta_sha256": file.delta.sha256,
        "delta_size_bytes": file.delta.size_bytes,
    }


def parse_globs(field: str, values: Collection[str]) -> tuple[str, ...]:
    """Parses globs of tensor names, and returns each once."""
    if len(values) > MAX_GLOBS:
        raise FieldInvalid(field, f"has {len(values)} entries; at most {MAX_GLOBS}")
    return tuple(dict.fromkeys(fields.parse_text(field, value, MAX_GLOB, required=True) for value in values))
