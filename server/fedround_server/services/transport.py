"""The precisions of updates: messages to domain objects and back."""

from collections.abc import Iterable

from fedround.v1 import aggregation_pb2, training_pb2
from fedround_server.domain.aggregation import Aggregation, DaisyChaining
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.transport import INT8_BLOCK, TensorPrecision, Transport, UpdatePrecision
from fedround_server.services import fields
from fedround_server.services.tensor_selection import MAX_GLOB

MAX_RULES = 100
MIN_BLOCK, MAX_BLOCK = 16, 65_536


def read(message: training_pb2.TrainingSpec, chosen: Aggregation) -> Transport:
    """Reads the precisions of a training's updates.

    Args:
        message: The spec.
        chosen: The training's aggregation.

    Raises:
        FieldInvalid: A field is out of range, or does not go with another one.
    """
    rules = message.tensor_precisions
    if len(rules) > MAX_RULES:
        raise FieldInvalid("spec.tensor_precisions", f"has {len(rules)} entries; at most {MAX_RULES}")
    found = Transport(
        tuple(_rule(f"spec.tensor_precisions[{number}]", rule) for number, rule in enumerate(rules)),
        _precision("spec.update_precision", message.update_precision) or UpdatePrecision.FULL,
        message.stochastic_rounding,
    )
    if isinstance(chosen.rule, DaisyChaining):
        problem = "does not go with fed_dc: local models go on as they come, so send them in full"
        if found.precision is not UpdatePrecision.FULL:
            raise FieldInvalid("spec.update_precision", problem)
        if found.rules:
            raise FieldInvalid("spec.tensor_precisions", problem)
    return found


def write_precision(found: UpdatePrecision) -> aggregation_pb2.UpdatePrecision.ValueType:
    """Encodes a precision."""
    return aggregation_pb2.UpdatePrecision.Value(f"UPDATE_PRECISION_{found.value}")


def write_rules(rules: Iterable[TensorPrecision]) -> list[aggregation_pb2.TensorPrecision]:
    """Encodes the precisions of some of the tensors."""
    return [
        aggregation_pb2.TensorPrecision(
            tensors=rule.tensors,
            precision=write_precision(rule.precision),
            stochastic_rounding=rule.stochastic_rounding,
            block_size=rule.block_size,
        )
        for rule in rules
    ]


def _rule(field: str, message: aggregation_pb2.TensorPrecision) -> TensorPrecision:
    glob = fields.parse_text(f"{field}.tensors", message.tensors, MAX_GLOB, required=True)
    precision = _precision(f"{field}.precision", message.precision)
    if precision is None:
        known = ", ".join(aggregation_pb2.UpdatePrecision.keys()[1:])
        raise FieldInvalid(f"{field}.precision", f"is required: one of {known}")
    size = message.block_size
    if size and precision is not UpdatePrecision.INT8:
        raise FieldInvalid(f"{field}.block_size", f"is for INT8, and the precision is {precision.value}: leave it out")
    if size and not (MIN_BLOCK <= size <= MAX_BLOCK and size.bit_count() == 1):
        raise FieldInvalid(
            f"{field}.block_size",
            f"is {size}; must be a power of two from {MIN_BLOCK} to {MAX_BLOCK}, or 0 for {INT8_BLOCK}",
        )
    block_size = size or INT8_BLOCK if precision is UpdatePrecision.INT8 else 0
    return TensorPrecision(glob, precision, message.stochastic_rounding, block_size)


def _precision(field: str, value: aggregation_pb2.UpdatePrecision.ValueType) -> UpdatePrecision | None:
    """Reads a precision; None if it is not set."""
    if value not in aggregation_pb2.UpdatePrecision.values():
        known = ", ".join(aggregation_pb2.UpdatePrecision.keys())
        raise FieldInvalid(field, f"is {value}; known are {known}")
    if value == aggregation_pb2.UPDATE_PRECISION_UNSPECIFIED:
        return None
    return UpdatePrecision(aggregation_pb2.UpdatePrecision.Name(value).removeprefix("UPDATE_PRECISION_"))
