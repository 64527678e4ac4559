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
    Buffering,
    Clipping,
    DifferentialPrivacy,
    Mixing,
    ServerOptimizer,
    Sgd,
)
from fedround.v1.aggregation_pb2 import FedAsync as AsyncOptions
from fedround_client.aggregation import FedAdagrad, FedAdam, FedAvgM, FedYogi, aggregate
from fedround_client.buffering import FedAsync, FedBuff
from fedround_client.client import Client
from fedround_client.command import names

_Fields: TypeAlias = Mapping[str, FieldDescriptor]


def _fields(*messages: Descriptor, without: Iterable[str] = ()) -> _Fields:
    """Returns the options of messages, by name."""
    found = {field.name: field for message in messages for field in message.fields if not field.message_type}
    return {name: field for name, field in found.items() if name not in without}


_BUFFERINGS: Mapping[str, _Fields] = {
    "fed_buff": _fields(Buffering.DESCRIPTOR),
    # It has one size.
    "fed_async": _fields(AsyncOptions.DESCRIPTOR, Buffering.DESCRIPTOR, without=["size"]),
}
_SHORT: Mapping[str, tuple[Callable[..., Aggregation], _Fields]] = {
    "fedavgm": (FedAvgM, _fields(Sgd.DESCRIPTOR)),
    "fedadagrad": (FedAdagrad, _fields(Adagrad.DESCRIPTOR)),
    "fedadam": (FedAdam, _fields(Adam.DESCRIPTOR)),
    "fedyogi": (FedYogi, _fields(Adam.DESCRIPTOR)),
    "fedbuff": (FedBuff, _BUFFERINGS["fed_buff"]),
    "fedasync": (FedAsync, _BUFFERINGS["fed_async"]),
}
"""FedAvg with an optimizer on the server, or with buffering: what makes it, and its options."""
_MAKERS: Mapping[str, Callable[..., Aggregation]] = {"fed_buff": FedBuff, "fed_async": FedAsync}

_TITLES = {
    "fed_avg": "FedAvg",
    "fed_prox": "FedProx",
    "fed_dc": "FedDC",
    "fed_nova": "FedNova",
    "q_fed_avg": "q-FedAvg",
    "fl_trust": "FLTrust",
    "scaffold": "SCAFFOLD",
    "fed_dyn": "FedDyn",
    "krum": "Krum",
    "multi_krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "lora_stack": "FLoRA",
    "lora_svd": "FlexLoRA",
    "freeze_a": "FFA-LoRA",
    "sgd": "FedAvgM",
    "adagrad": "FedAdagrad",
    "adam": "FedAdam",
    "yogi": "FedYogi",
    "fed_buff": "FedBuff",
    "fed_async": "FedAsync",
}
"""The names in papers of those that have another one."""


def _members(message: Descriptor, oneof: str) -> dict[str, Descriptor]:
    return {field.name: field.message_type for field in message.oneofs_by_name[oneof].fields if field.message_type}


_ALGORITHMS = _members(Aggregation.DESCRIPTOR, "algorithm")
_CLIPPINGS = _members(Clipping.DESCRIPTOR, "method")
_MIXINGS = _members(Mixing.DESCRIPTOR, "method")
_OPTIMIZERS = _members(ServerOptimizer.DESCRIPTOR, "method")


def _listed(methods: Mapping[str, Descriptor | _Fields]) -> str:
    """Returns methods with the names of their options, for help and errors."""
    named = {name: _fields(one) if isinstance(one, Descriptor) else one for name, one in methods.items()}
    return ", ".join(f"{name} ({', '.join(options)})" if options else name for name, options in named.items())


AggregationChoice: TypeAlias = Annotated[
    str,
    typer.Option(
        "--aggregation",
        metavar="NAME[:OPTIONS]",
        help="How updates become the next version; fed_avg by default. OPTIONS are OPTION=VALUE, with commas between"
        f" them. One of {_listed(_ALGORITHMS)}; or FedAvg with a server optimizer, or asynchronous:"
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
BufferingOption: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help="Makes the training asynchronous: a version is made of the updates that arrive, whatever version they"
        f" started from; one of {_listed(_BUFFERINGS)}.",
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
ShadowOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help="Another aggregation of the same updates, as for --aggregation, with a model of its own as a side branch;"
        " repeat for more, at most 8.",
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
    buffering: str = "",
    *,
    shadows: Iterable[str] = (),
    differential_privacy: str = "",
) -> Aggregation | None:
    """Returns the message for the options of a command; None if none is given.

    Raises:
        typer.BadParameter: A method or an option is unknown, or has a value that it cannot have.
    """
    rule = _rule("--aggregation", algorithm)
    others = [aggregate(_rule("--shadow", shadow)) for shadow in shadows]
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
        values = _values(
            "--differential-privacy", "differential_privacy", DifferentialPrivacy.DESCRIPTOR.fields_by_name, given
        )
        privacy = DifferentialPrivacy(**values)
    try:
        found = aggregate(
            rule,
            **stages,
            server_optimizer=optimizer,
            buffers=buffers,
            shadows=others,
            differential_privacy=privacy,
        )
    except ValueError as error:
        raise typer.BadParameter(f"--server-optimizer: {error}") from None
    if buffering:
        chosen, given = _split("--buffering", buffering)
        if chosen not in _MAKERS:
            raise typer.BadParameter(f"--buffering: there is no {chosen!r}; known are {', '.join(_MAKERS)}")
        made = _made("--buffering", chosen, _MAKERS[chosen], _BUFFERINGS[chosen], given)
        try:
            found = aggregate(found, buffering=made.buffering)
        except ValueError as error:
            raise typer.BadParameter(f"--buffering: {error}") from None
    return found if found.ByteSize() else None


def _rule(option: str, text: str) -> Message | None:
    """Returns the rule that an option names, or FedAvg with a server optimizer; None if it names none."""
    name, options = _split(option, text)
    if name in _SHORT:
        return _made(option, name, *_SHORT[name], options)
    return _message(option, name, options, _ALGORITHMS, also=_SHORT) if name else None


def with_user_ids(connection: Client, found: Aggregation | None) -> Aggregation | None:
    """Returns an aggregation with the ids of users that it names."""
    for one in () if found is None else (found, *found.shadow):
        rule = getattr(one, one.WhichOneof("algorithm") or "fed_avg")
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
    if found.HasField("buffering"):
        text = f"{_buffering_text(found.buffering)} of {text}"
    text += f" after {' and '.join(before)}" if before else ""
    if found.HasField("differential_privacy"):
        text += f" with {_text('differential_privacy', found.differential_privacy, users)}"
    text += f"; {', '.join(found.buffers)} averaged" if found.buffers else ""
    shadows = [aggregation_text(one, users) for one in found.shadow]
    return text + (f"; shadows: {', '.join(shadows)}" if shadows else "")


def _buffering_text(found: Buffering) -> str:
    method = found.WhichOneof("method") or "fed_buff"
    options = {
        field.name: value for message in (found, getattr(found, method)) for field, value in message.ListFields()
    }
    values = [f"{name}={options[name]:g}" for name in _BUFFERINGS[method] if name in options]
    return f"{_TITLES[method]}({', '.join(values)})" if values else _TITLES[method]


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
    made: Message = GetMessageClass(methods[name])(**_values(option, name, _fields(methods[name]), options))
    return made


def _made(
    option: str, name: str, make: Callable[..., Aggregation], fields: _Fields, options: Mapping[str, str]
) -> Aggregation:
    try:
        return make(**_values(option, name, fields, options))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {name}: {error}") from None


def _values(option: str, name: str, fields: _Fields, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values of options in the types of the message's fields."""
    found = {}
    for key, text in options.items():
        field = fields.get(key)
        if field is None:
            known = f"known are {', '.join(fields)}" if fields else "it has none"
            raise typer.BadParameter(f"{option}: {name} has no option {key!r}; {known}")
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
