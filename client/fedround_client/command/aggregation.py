"""Aggregations on the command line: NAME, or NAME:OPTION=VALUE,OPTION=VALUE; and as text for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeAlias

import typer
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fedround.v1.aggregation_pb2 import (
    Adagrad,
    Adam,
    Aggregation,
    Clipping,
    DifferentialPrivacy,
    Mixing,
    ServerOptimizer,
    Sgd,
)
from fedround_client.aggregation import FedAdagrad, FedAdam, FedAvgM, FedYogi, aggregate
from fedround_client.client import Client
from fedround_client.command import names

_SHORT: Mapping[str, tuple[Callable[..., Aggregation], Descriptor]] = {
    "fedavgm": (FedAvgM, Sgd.DESCRIPTOR),
    "fedadagrad": (FedAdagrad, Adagrad.DESCRIPTOR),
    "fedadam": (FedAdam, Adam.DESCRIPTOR),
    "fedyogi": (FedYogi, Adam.DESCRIPTOR),
}
"""FedAvg with an optimizer on the server: what makes it, and the message with the options."""

_TITLES = {
    "fed_avg": "FedAvg",
    "fed_prox": "FedProx",
    "fed_dc": "FedDC",
    "fed_nova": "FedNova",
    "q_fed_avg": "q-FedAvg",
    "fl_trust": "FLTrust",
    "krum": "Krum",
    "multi_krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "sgd": "FedAvgM",
    "adagrad": "FedAdagrad",
    "adam": "FedAdam",
    "yogi": "FedYogi",
}
"""The names in papers of those that have another one."""


def _members(message: Descriptor, oneof: str) -> dict[str, Descriptor]:
    return {field.name: field.message_type for field in message.oneofs_by_name[oneof].fields if field.message_type}


_ALGORITHMS = _members(Aggregation.DESCRIPTOR, "algorithm")
_CLIPPINGS = _members(Clipping.DESCRIPTOR, "method")
_MIXINGS = _members(Mixing.DESCRIPTOR, "method")
_OPTIMIZERS = _members(ServerOptimizer.DESCRIPTOR, "method")


def _listed(methods: Mapping[str, Descriptor]) -> str:
    """Returns methods with the names of their options, for help and errors."""
    return ", ".join(
        f"{name} ({', '.join(field.name for field in options.fields)})" if options.fields else name
        for name, options in methods.items()
    )


AggregationChoice: TypeAlias = Annotated[
    str,
    typer.Option(
        "--aggregation",
        metavar="NAME[:OPTIONS]",
        help="How updates become the next version; fed_avg by default. OPTIONS are OPTION=VALUE, with commas between"
        f" them. One of {_listed(_ALGORITHMS)}; or FedAvg with a server optimizer:"
        f" {_listed({name: options for name, (_, options) in _SHORT.items()})}.",
    ),
]
ClippingOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help=f"Scales each update before; one of {_listed(_CLIPPINGS)}.",
    ),
]
MixingOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help=f"Replaces updates by averages of some of them, before the aggregation; one of {_listed(_MIXINGS)}.",
    ),
]
OptimizerOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help=f"Takes what the aggregation has made for a gradient; one of {_listed(_OPTIMIZERS)}.",
    ),
]
BufferOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Tensors that are averaged whatever the aggregation; repeat for more. By default those of normalization"
        " layers.",
    ),
]


PrivacyOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--differential-privacy",
        metavar="OPTIONS",
        help="Adds noise, so that versions reveal little about any participant; needs --clipping. OPTIONS are"
        f" OPTION=VALUE, with commas between them: {', '.join(DifferentialPrivacy.DESCRIPTOR.fields_by_name)}.",
    ),
]


def aggregation_option(
    algorithm: str,
    clipping: str,
    mixing: str,
    server_optimizer: str,
    buffers: Iterable[str],
    differential_privacy: str = "",
) -> Aggregation | None:
    """Returns the message for the options of a command; None if none is given.

    Raises:
        typer.BadParameter: A method or an option is unknown, or has a value that it cannot have.
    """
    rule: Message | None = None
    name, options = _split("--aggregation", algorithm)
    if name in _SHORT:
        make, fields = _SHORT[name]
        try:
            rule = make(**_values("--aggregation", name, fields, options))
        except ValueError as error:
            raise typer.BadParameter(f"--aggregation {name}: {error}") from None
    elif name:
        rule = _message("--aggregation", name, options, _ALGORITHMS, also=_SHORT)
    stages = {
        field: _message(option, *_split(option, text), methods) if text else None
        for field, option, text, methods in (
            ("clipping", "--clipping", clipping, _CLIPPINGS),
            ("mixing", "--mixing", mixing, _MIXINGS),
        )
    }
    optimizer: Message | None = None
    if server_optimizer:
        chosen, given = _split("--server-optimizer", server_optimizer)
        # FedAdam and FedYogi have the same message.
        made = _message("--server-optimizer", chosen, given, _OPTIMIZERS)
        optimizer = ServerOptimizer()
        getattr(optimizer, chosen).MergeFrom(made)
        getattr(optimizer, chosen).SetInParent()
    privacy: DifferentialPrivacy | None = None
    if differential_privacy:
        given = _options("--differential-privacy", differential_privacy)
        values = _values("--differential-privacy", "privacy", DifferentialPrivacy.DESCRIPTOR, given)
        privacy = DifferentialPrivacy(**values)
    try:
        found = aggregate(rule, **stages, server_optimizer=optimizer, buffers=buffers, differential_privacy=privacy)
    except ValueError as error:
        raise typer.BadParameter(f"--server-optimizer: {error}") from None
    return found if found.ByteSize() else None


def with_user_ids(connection: Client, found: Aggregation | None) -> Aggregation | None:
    """Returns an aggregation with the ids of users that it names."""
    name = None if found is None else found.WhichOneof("algorithm")
    if found is None or name is None:
        return found
    rule = getattr(found, name)
    for field, value in rule.ListFields():
        if field.name.endswith("_client_id"):
            (user_id,) = names.user_ids(connection, [value])
            setattr(rule, field.name, user_id)
    return found


def aggregation_text(found: Aggregation, users: Mapping[str, str] | None = None) -> str:
    """Returns all stages of an aggregation with their options.

    Args:
        found: The aggregation.
        users: Names of users, by id.
    """
    name = found.WhichOneof("algorithm") or "fed_avg"
    text = _text(name, getattr(found, name), users)
    before = []
    for field, noun in (("clipping", "clipping"), ("mixing", "mixing")):
        stage = getattr(found, field)
        if method := stage.WhichOneof("method"):
            before.append(_text(method, getattr(stage, method), users, noun))
    if method := found.server_optimizer.WhichOneof("method"):
        optimizer = _text(method, getattr(found.server_optimizer, method), users)
        text = optimizer if name == "fed_avg" else f"{optimizer} over {text}"
    text += f" after {' and '.join(before)}" if before else ""
    if found.HasField("differential_privacy"):
        text += f" with {_text('differential_privacy', found.differential_privacy, users)}"
    return text + (f"; {', '.join(found.buffers)} averaged" if found.buffers else "")


def _text(name: str, options: Message, users: Mapping[str, str] | None, noun: str = "") -> str:
    title = _TITLES.get(name, name.replace("_", " ")) + (f" {noun}" if noun else "")
    values = []
    for field, value in options.ListFields():
        shown = f"{value:g}" if isinstance(value, float) else (users or {}).get(str(value), value)
        values.append(f"{field.name}={shown}")
    return f"{title}({', '.join(values)})" if values else title


def _split(option: str, text: str) -> tuple[str, dict[str, str]]:
    """Returns the name of a method, and its options as texts."""
    name, colon, rest = text.partition(":")
    return name.strip().lower(), _options(option, rest, f"{name}:") if colon else {}


def _options(option: str, text: str, prefix: str = "") -> dict[str, str]:
    """Returns options as texts; the prefix is for errors."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (one.strip() for one in part.partition("="))
        if not (key and equals and value):
            raise typer.BadParameter(f"{option}: {part!r} is not OPTION=VALUE, as in {prefix}OPTION=VALUE,OPTION=VALUE")
        if key in found:
            raise typer.BadParameter(f"{option}: {key} is given twice")
        found[key] = value
    return found


def _message(
    option: str, name: str, options: Mapping[str, str], methods: Mapping[str, Descriptor], also: Iterable[str] = ()
) -> Message:
    if name not in methods:
        raise typer.BadParameter(f"{option}: there is no {name!r}; known are {', '.join([*methods, *also])}")
    made: Message = GetMessageClass(methods[name])(**_values(option, name, methods[name], options))
    return made


def _values(option: str, name: str, message: Descriptor, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of options in the types of the message's fields."""
    found = {}
    for key, text in options.items():
        field = message.fields_by_name.get(key)
        if field is None:
            known = ", ".join(message.fields_by_name) or "none"
            raise typer.BadParameter(f"{option}: {name} has no option {key!r}; known are {known}")
        found[key] = _value(f"{option}: {name}:{key}", field, text)
    return found


def _value(what: str, field: FieldDescriptor, text: str) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise typer.BadParameter(f"{what} is {text!r}; must be true or false")
        return text.lower() == "true"
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{what} is {text!r}; must be a number") from None
    bits = 64 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else 32
    if not text.isdecimal() or int(text) >= 1 << bits:
        raise typer.BadParameter(f"{what} is {text!r}; must be a whole number from 0 to {(1 << bits) - 1}")
    return int(text)
