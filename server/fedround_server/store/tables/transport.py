"""The precisions of updates as JSON, beside other fields, and back."""

from collections.abc import Mapping
from typing import Any

from fedround_server.domain.transport import TensorPrecision, Transport, UpdatePrecision

TRANSPORT_KEYS = ("update_precision", "stochastic_rounding", "tensor_precisions")


def from_transport(transport: Transport) -> dict[str, Any]:
    """Writes precisions."""
    rules = [
        {
            "tensors": rule.tensors,
            "precision": rule.precision.name,
            "stochastic_rounding": rule.stochastic_rounding,
            "block_size": rule.block_size,
        }
        for rule in transport.rules
    ]
    return {
        "update_precision": transport.precision.name,
        "stochastic_rounding": transport.stochastic_rounding,
        "tensor_precisions": rules,
    }


def to_transport(data: Mapping[str, Any]) -> Transport:
    """Reads precisions; without any, updates come in full."""
    rules = (
        TensorPrecision(
            one["tensors"], UpdatePrecision[one["precision"]], one["stochastic_rounding"], one["block_size"]
        )
        for one in data.get("tensor_precisions", ())
    )
    return Transport(
        tuple(rules),
        UpdatePrecision[data.get("update_precision", "FULL")],
        data.get("stochastic_rounding", False),
    )
