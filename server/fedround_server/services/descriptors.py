"""The descriptors that reflection serves."""

import re
from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool


def described(files: Iterable[FileDescriptor]) -> DescriptorPool:
    """Returns a pool with files and all that they import, in which each field has its name in JSON.

    Descriptors in generated code leave these names out, and grpcurl then prints `training_id` instead of `trainingId`.
    """
    protos: dict[str, FileDescriptorProto] = {}
    for file in files:
        _collect(file, protos)
    pool = DescriptorPool()
    for proto in protos.values():
        pool.AddSerializedFile(proto.SerializeToString())
    return pool


def _collect(file: FileDescriptor, protos: dict[str, FileDescriptorProto]) -> None:
    """Adds a file, behind those that it imports."""
    if file.name in protos:
        return
    for imported in file.dependencies:
        _collect(imported, protos)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    messages = list(proto.message_type)
    for message in messages:
        messages.extend(message.nested_type)
        for field in message.field:
            field.json_name = re.sub("_+(.?)", lambda match: match[1].upper(), field.name)
    protos[file.name] = proto
