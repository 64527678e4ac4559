"""Conversion of aggregations: messages and their fields have the names of stages and of their options."""

from dataclasses import replace
from typing import Any

from google.protobuf.message import Message

from fedround.v1 import aggregation_pb2
from fedround_server.aggregators import OTHERS, STAGES
from fedround_server.aggregators.compatibility import check_compatible
from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.domain.aggregation import BUFFERS, Aggregation, OptionInvalid, options_of
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid
from fedround_server.domain.shadow import MAX_SHADOWS
from fedround_server.services import fields, tensor_selection

FIELD = "spec.aggregation"
METHOD = "method"
SHADOWLESS = ("shadow", "buffering", "differential_privacy")
"""Fields that a shadow aggregation does not have."""
TRAINED_OTHERWISE = ("fed_dc", "scaffold", "fed_dyn", "lora_stack")
"""Rules for which participants train in a way of their own: not in a shadow."""
WITHOUT_SHADOWS = {
    "scaffold": "whose updates have control variates, too",
    "fed_dc": "whose local models have been with several participants",
    "lora_stack": "whose updates may have adapters of different ranks",
    "lora_svd": "whose updates may have adapters of different ranks",
    "partial_sum": "whose result is no model",
}
"""Rules whose updates other aggregations cannot take, and why."""
DEFAULTS = {"buffering": "fed_buff"}
"""What a stage does if its message does not say it."""


def read(message: aggregation_pb2.Aggregation) -> Aggregation:
    """Reads an aggregation, and fills in the defaults.

    Raises:
        FieldInvalid: An option has a value that it cannot have.
        AggregationIncompatible: Its stages do not go together, or a shadow has one that it cannot have.
    """
    found = _read(message, FIELD)
    check_compatible(found)
    if len(message.shadow) > MAX_SHADOWS:
        raise FieldInvalid(f"{FIELD}.shadow", f"has {len(message.shadow)} aggregations; at most {MAX_SHADOWS}")
    if message.HasField("differential_privacy") and (message.HasField("buffering") or message.shadow):
        other = "buffering" if message.HasField("buffering") else "shadow"
        raise AggregationIncompatible(
            "differential_privacy", f"does not go with {other}, whose versions would reveal more than is accounted"
        )
    if message.shadow and (reason := WITHOUT_SHADOWS.get(found.rule.name)):
        raise AggregationIncompatible("shadow", f"does not go with {found.rule.name}, {reason}")
    shadows = tuple(_shadow(number, one) for number, one in enumerate(message.shadow))
    return replace(found, shadows=shadows)


def _shadow(number: int, message: aggregation_pb2.Aggregation) -> Aggregation:
    name = f"shadow[{number}]"
    for field in SHADOWLESS:
        if field in {one.name for one, _ in message.ListFields()}:
            raise AggregationIncompatible(f"{name}.{field}", "is not available in a shadow aggregation: leave it out")
    if (rule := message.WhichOneof("algorithm")) in TRAINED_OTHERWISE:
        raise AggregationIncompatible(
            f"{name}.{rule}", "needs participants that train for it: make it the aggregation of a training of its own"
        )
    found = _read(message, f"{FIELD}.{name}")
    if isinstance(found.rule, PartialSum):
        raise AggregationIncompatible(f"{name}.{found.rule.name}", "is not available in a shadow: it makes no model")
    try:
        check_compatible(found)
    except AggregationIncompatible as error:
        raise AggregationIncompatible(f"{name}.{error.field.removeprefix(f'{FIELD}.')}", error.description) from None
    return found


def _read(message: aggregation_pb2.Aggregation, path: str) -> Aggregation:
    name = message.WhichOneof("algorithm")
    rule = FedAvg() if name is None else _stage("algorithm", name, getattr(message, name), f"{path}.{name}")
    others: dict[str, Any] = {}
    for field, chosen in ((one.name, value) for one, value in message.ListFields()):
        if field in OTHERS:
            if METHOD not in chosen.DESCRIPTOR.oneofs_by_name:
                others[field] = _stage(field, field, chosen, f"{path}.{field}")
                continue
            method = chosen.WhichOneof(METHOD) or DEFAULTS.get(field)
            if method is None:
                known = ", ".join(sorted(STAGES[field]))
                raise FieldInvalid(f"{path}.{field}", f"has no method; known are {known}")
            others[field] = _stage(field, method, getattr(chosen, method), f"{path}.{field}.{method}", chosen)
    buffers = tensor_selection.parse_globs(f"{path}.buffers", message.buffers) or BUFFERS
    return Aggregation(rule, **others, buffers=buffers)


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
                # The options that all methods of a stage have are beside them.
                owner = options if option in options.DESCRIPTOR.fields_by_name else target
                setattr(owner, option, value)
    message.shadow.extend(map(write, found.shadows))
    return message


def _stage(field: str, name: str, message: Message, path: str, shared: Message | None = None) -> Any:
    """Reads a stage: an option that is not set, or is 0 where that cannot be told apart, has its default.

    Args:
        field: The field of the aggregation.
        name: The name of the stage.
        message: Its options.
        path: The name of the message, for errors.
        shared: The message with the options that all stages of the field have.
    """
    options = _given(message) if shared is None else _given(message) | _given(shared)
    options |= {
        option: fields.parse_id(f"{path}.{option}", value)
        for option, value in options.items()
        if option.endswith("_id")
    }
    try:
        stage = STAGES[field][name](**options)
        stage.check()
    except OptionInvalid as error:
        if error.option not in message.DESCRIPTOR.fields_by_name:
            path = path.removesuffix(f".{name}")
        raise FieldInvalid(f"{path}.{error.option}", error.problem) from None
    return stage


def _given(message: Message) -> dict[str, Any]:
    """Returns the options of a message that are set, by name."""
    return {
        option.name: getattr(message, option.name)
        for option in message.DESCRIPTOR.fields
        if option.message_type is None
        and (message.HasField(option.name) if option.has_presence else getattr(message, option.name))
    }
