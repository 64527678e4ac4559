"""Conversion of aggregations: messages and their fields have the names of stages and of their options."""

from typing import Any

from google.protobuf.message import Message

from fedround.v1 import aggregation_pb2
from fedround_server.aggregators import OTHERS, STAGES
from fedround_server.aggregators.compatibility import check_compatible
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.domain.aggregation import BUFFERS, Aggregation, OptionInvalid, options_of
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid
from fedround_server.services import fields, tensor_selection

FIELD = "spec.aggregation"
METHOD = "method"


def read(message: aggregation_pb2.Aggregation) -> Aggregation:
    """Reads an aggregation, and fills in the defaults.

    Raises:
        FieldInvalid: An option has a value that it cannot have.
        AggregationIncompatible: Its stages do not go together.
    """
    name = message.WhichOneof("algorithm")
    rule = FedAvg() if name is None else _stage("algorithm", name, getattr(message, name), f"{FIELD}.{name}")
    others: dict[str, Any] = {}
    for field, chosen in ((one.name, value) for one, value in message.ListFields()):
        if field in OTHERS:
            if METHOD not in chosen.DESCRIPTOR.oneofs_by_name:
                others[field] = _stage(field, field, chosen, f"{FIELD}.{field}")
                continue
            method = chosen.WhichOneof(METHOD)
            if method is None:
                known = ", ".join(sorted(STAGES[field]))
                raise FieldInvalid(f"{FIELD}.{field}", f"has no method; known are {known}")
            others[field] = _stage(field, method, getattr(chosen, method), f"{FIELD}.{field}.{method}")
    if message.HasField("differential_privacy") and (message.HasField("buffering") or message.shadow):
        other = "buffering" if message.HasField("buffering") else "shadow"
        raise AggregationIncompatible(
            "differential_privacy", f"does not go with {other}, whose versions would reveal more than is accounted"
        )
    buffers = tensor_selection.parse_globs(f"{FIELD}.buffers", message.buffers) or BUFFERS
    found = Aggregation(rule, **others, buffers=buffers)
    check_compatible(found)
    return found


def write(found: Aggregation) -> aggregation_pb2.Aggregation:
    """Encodes an aggregation."""
    message = aggregation_pb2.Aggregation(buffers=() if found.buffers == BUFFERS else found.buffers)
    for field, stage in found.stages.items():
        # Of some stages there is one kind, whose options are fields of the stage itself.
        target = message if field in ("algorithm", stage.name) else getattr(message, field)
        options = getattr(target, stage.name)
        options.SetInParent()
        for option, value in options_of(stage).items():
            if value is not None:
                setattr(options, option, value)
    return message


def _stage(field: str, name: str, message: Message, path: str) -> Any:
    """Reads a stage: an option that is not set, or is 0 where that cannot be told apart, has its default."""
    options: dict[str, Any] = {
        option.name: getattr(message, option.name)
        for option in message.DESCRIPTOR.fields
        if (message.HasField(option.name) if option.has_presence else getattr(message, option.name))
    }
    options |= {
        option: fields.parse_id(f"{path}.{option}", value)
        for option, value in options.items()
        if option.endswith("_id")
    }
    try:
        stage = STAGES[field][name](**options)
        stage.check()
    except OptionInvalid as error:
        raise FieldInvalid(f"{path}.{error.option}", error.problem) from None
    return stage
