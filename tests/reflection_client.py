"""What grpcurl does with the flags that docs/debugging-with-grpcurl.md uses, by reflection or a protoset alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from calls import TIMEOUT

CODE_OFFSET = 64
"""grpcurl exits with this plus the number of the status code."""
TAKES_VALUE = {"-H", "-d", "-protoset", "-max-time"}
WORDS = {code.name: "".join(word.capitalize() for word in code.name.split("_")) for code in grpc.StatusCode}
"""The names of status codes as grpcurl prints them."""


@dataclass(frozen=True)
class Answer:
    """What a command has printed, and its exit code."""

    code: int = 0
    output: str = ""
    error: str = ""


@dataclass
class Flags:
    """The words of a command line."""

    words: list[str] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: str = ""
    protoset: str = ""
    max_time: float = TIMEOUT


def parse(arguments: Sequence[str]) -> Flags:
    """Reads flags as Go does: all of them come before the first other word.

    Raises:
        ValueError: A flag is not known here.
    """
    flags, rest = Flags(), list(arguments)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "-plaintext":
            continue
        if flag not in TAKES_VALUE:
            raise ValueError(f"flag provided but not defined: {flag}")
        value = rest.pop(0)
        match flag:
            case "-H":
                name, _, text = value.partition(":")
                flags.headers.append((name.strip().lower(), text.strip()))
            case "-d":
                flags.data = value
            case "-protoset":
                flags.protoset = value
            case _:
                flags.max_time = float(value)
    flags.words = rest
    return flags


def grpcurl(arguments: Sequence[str], stdin: str) -> Answer:
    """Runs a command; the words are `[ADDRESS] list [SERVICE]`, `[ADDRESS] describe SYMBOL`, or `ADDRESS METHOD`."""
    try:
        flags = parse(arguments)
    except ValueError as error:
        return Answer(2, error=str(error))
    if flags.protoset and flags.words[0] in ("list", "describe"):
        return _explore(_pool_of(flags.protoset), _services_of(flags.protoset), flags.words)
    address, *words = flags.words
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = _pool_of(flags.protoset) if flags.protoset else DescriptorPool(database)
        if words[0] in ("list", "describe"):
            return _explore(pool, list(database.get_services()), words)
        service, _, name = words[0].partition("/")
        try:
            method = pool.FindServiceByName(service).FindMethodByName(name)
        except KeyError:
            return Answer(1, error=f"Error invoking method {words[0]!r}: the server does not describe it")
        return _call(channel, method, flags, stdin)


def _explore(pool: DescriptorPool, services: list[str], words: Sequence[str]) -> Answer:
    match words:
        case ["list"]:
            return Answer(output="\n".join(sorted(services)) + "\n")
        case ["list", service]:
            methods = pool.FindServiceByName(service).methods
            return Answer(output="".join(f"{method.full_name}\n" for method in sorted(methods, key=lambda m: m.name)))
        case ["describe", symbol]:
            return Answer(output=_describe(pool.FindFileContainingSymbol(symbol), symbol))
    raise ValueError(words)


def _describe(file: Any, symbol: str) -> str:
    name = symbol.rpartition(".")[2]
    service = file.services_by_name.get(name)
    members = file.message_types_by_name[name].fields if service is None else service.methods
    return f"{symbol}:\n" + "".join(f"  {member.name}\n" for member in members)


def _call(channel: grpc.Channel, method: MethodDescriptor, flags: Flags, stdin: str) -> Answer:
    question, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    try:
        found = _objects(stdin if flags.data == "@" else flags.data)
        requests = [json_format.ParseDict(one, question()) for one in found]
    except (ValueError, json_format.ParseError) as error:
        return Answer(1, error=f"Error invoking method: {error}")
    kind = f"{_kind(method.client_streaming)}_{_kind(method.server_streaming)}"
    call = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=question.SerializeToString,
        response_deserializer=answer.FromString,
    )
    # A unary call without data gets an empty message.
    given: Any = iter(requests) if method.client_streaming else (requests or [question()])[0]
    printed, by_json_name = "", _has_json_names(method.output_type)
    try:
        got = call(given, metadata=flags.headers, timeout=flags.max_time)
        for response in got if method.server_streaming else [got]:
            printed += json_format.MessageToJson(response, preserving_proto_field_name=not by_json_name) + "\n"
    except grpc.RpcError as error:
        code = error.code()  # type: ignore[attr-defined]  # a call is an error, too
        text = f"ERROR:\n  Code: {WORDS[code.name]}\n  Message: {error.details()}\n"  # type: ignore[attr-defined]
        return Answer(CODE_OFFSET + code.value[0], printed, text)
    return Answer(0, printed)


def _has_json_names(message: Descriptor) -> bool:
    """Returns whether fields are described with their names in JSON: if not, grpcurl prints those of the protos."""
    proto = DescriptorProto()
    message.CopyToProto(proto)
    return all(field.HasField("json_name") for field in proto.field)


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yields JSON objects that stand one behind the other."""
    text = text.strip()
    while text:
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:].lstrip()


def _files_of(protoset: str) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(Path(protoset).read_bytes())


def _pool_of(protoset: str) -> DescriptorPool:
    pool = DescriptorPool()
    for file in _files_of(protoset).file:
        pool.Add(file)
    return pool


def _services_of(protoset: str) -> list[str]:
    files = _files_of(protoset).file
    return [f"{file.package}.{service.name}" for file in files for service in file.service]
